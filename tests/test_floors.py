"""Why: the house stands on who may import whom. A wrong import works today and makes the
blind path, the fork-free simulators or the four-rank trainer untestable tomorrow; so the rules are read off the syntax
trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("la4vla", "benchmarks") for path in (ROOT / package).rglob("*.py"))

F0 = {"types", "config", "levels", "directions", "rng", "manifest", "files", "shell", "device"}
LEAVES = {"page", "chat", "action_text", "questions"}
F1 = {"data", "model", "vlm"}
ROOMS = {
    **dict.fromkeys(LEAVES, F0),
    "data": F0 | {"page"},
    "model": F0,
    "vlm": F0 | {"model"},
    "grounding": F0 | {"data", "model"},
    "probe_cases": F0 | {"data", "page"},
    "train": F0 | F1 | {"page", "action_text", "probe_cases", "grounding"},
    "serve": F0 | F1 | {"action_text", "chat", "questions"},
    "sim": F0 | F1,
    "construct": F0 | LEAVES | F1 | {"grounding"},
    "probe": F0 | F1 | {"page", "probe_cases", "serve", "construct"},
    "benchmarks": F0
    | F1
    | {"page", "action_text", "questions", "probe_cases", "serve", "sim", "probe", "construct", "grounding", "gpla"},
    "gpla": F0 | F1 | {"train", "serve", "grounding", "page", "questions"},
    "released": F0 | F1 | {"sim"},
    "cli": F0
    | F1
    | {"released", "train", "gpla", "serve", "sim", "construct", "probe", "benchmarks", "doctor", "export"},
    "doctor": F0 | F1 | {"serve", "sim"},
    "export": F0 | F1,
}
"""What each room may import besides itself. `construct` may also import `sim`, to record, where it does not run at
import."""

SHELVES = {
    "la4vla.construct": {
        "vocabulary": set(),
        "ledger": set(),
        "robots": set(),
        "notes": set(),
        "episodes": {"notes", "robots"},
        "arm_words": {"vocabulary"},
        "propose": {"vocabulary", "arm_words", "ledger", "notes", "robots", "episodes"},
        "recording": {"robots", "episodes"},
        "scores": {"ledger", "propose"},
        "filter": {"vocabulary", "arm_words", "propose", "scores"},
        "second_judge": {"ledger", "episodes", "propose"},
        "readers": {"ledger", "notes", "robots", "episodes", "recording"},
        "build": {"ledger", "episodes", "propose", "readers"},
        "texts": {"vocabulary", "ledger", "episodes", "propose", "recording", "steps"},
        "steps": {"ledger", "notes", "episodes", "propose", "scores", "filter", "second_judge", "readers"},
        "review": {"ledger", "robots", "episodes", "propose", "scores", "steps"},
        "report": {"ledger", "notes", "episodes", "propose", "scores", "steps", "readers", "review", "texts"},
        "__main__": {"recording", "readers", "steps", "build", "texts", "review", "report"},
    },
    "la4vla.vlm": {
        "rows": set(),
        "preference": {"rows"},
        "model": {"preference"},
        "train_tokenizer": set(),
        "tiny": {"rows", "model", "train_tokenizer"},
        "load": {"rows", "model", "tiny"},
        "generate": {"rows", "model"},
        "scores": {"rows", "model"},
        "flops": {"model"},
        "stored": {"rows", "model", "load"},
        "rare_tokens": {"rows"},
    },
    "la4vla.data": {
        **{leaf: set() for leaf in ("rotation", "normalize", "npz", "augment", "collate", "mixture")},
        "bounds": {"normalize"},
        "delta": {"rotation"},
        "tally": {"normalize"},
        "transforms": {"normalize", "bounds", "delta"},
        "shards": {"npz", "normalize", "delta", "tally"},
        "values": {"normalize", "shards"},
        "inspect": {"normalize", "delta", "tally", "shards", "values"},
        "order": {"shards"},
        "processor": {"collate", "transforms"},
        "groups": {"shards", "transforms"},
        "pairs": {"collate"},
        "robots": {"normalize", "delta", "transforms", "collate", "processor", "shards"},
        "setup": {"order", "normalize", "collate", "robots", "shards", "groups"},
        "explain": {"setup", "delta", "mixture", "normalize", "values", "groups"},
        "imported": {"shards"},
        "text_rows": {"setup", "shards"},
        "reader": {
            "values",
            "setup",
            "order",
            "mixture",
            "augment",
            "processor",
            "shards",
            "text_rows",
            "groups",
            "pairs",
        },
        "loader": {"setup", "reader"},
    },
    "la4vla.train": {
        **{leaf: set() for leaf in ("dist", "optim", "ema", "disk", "integrity")},
        "engines": {"dist", "optim", "ema"},
        "health": {"dist"},
        "metrics": {"dist", "disk"},
        "run_folder": {"dist", "disk"},
        "checkpoint": {"dist", "optim", "disk", "integrity", "engines"},
        "stopping": {"dist"},
        "resume": {"dist", "integrity", "checkpoint", "stopping"},
        "learners": {"dist", "engines", "metrics", "run_folder", "checkpoint", "resume"},
        "report": {"dist", "metrics", "checkpoint", "learners"},
        "run": {
            *("dist", "optim", "engines", "health", "run_folder", "checkpoint", "resume", "learners", "report"),
            "stopping",
        },
        "loop": {"dist", "optim", "engines", "health", "run_folder", "learners", "report", "run"},
        "__main__": {"dist", "loop", "run"},
    },
    "benchmarks": {
        "perturb": set(),
        "results": {"perturb"},
        "rollouts": {"perturb", "results"},
        "report": {"perturb", "results"},
        "sweep": {"perturb", "results", "report"},
        "study": {"perturb", "results", "report", "writing", "hierarchy"},
        "hierarchy": {"results"},
        "grounding": {"hierarchy"},
        "writing": {"results"},
        "__main__": {"perturb", "results", "rollouts", "report", "sweep", "study", "writing", "hierarchy", "grounding"},
        "speed": {"results", "rollouts"},
    },
}
"""Inside the rooms that have shelves: what each shelf, or file beside them, may import of its own room."""

GROUND_THIRD_PARTY = {"numpy", "torch", "omegaconf", "yaml"}  # yaml is what omegaconf reads with
SIMULATORS = ("mujoco", "metaworld", "gymnasium", "libero", "robosuite", "OpenGL")
CONFINED = {
    "torch.distributed": ("la4vla/train/dist.py", "la4vla/train/checkpoint.py", "la4vla/train/engines/"),
    "deepspeed": ("la4vla/train/dist.py", "la4vla/train/checkpoint.py", "la4vla/train/engines/"),
    "wandb": ("la4vla/train/metrics.py",),
    "tensorboard": ("la4vla/train/metrics.py",),
    "torch.utils.tensorboard": ("la4vla/train/metrics.py",),
    "argparse": ("la4vla/cli.py", "benchmarks/"),
    "random": (),
    "pickle": (),  # what a stranger sends must not run
    **{name: ("la4vla/sim/",) for name in SIMULATORS},
    "mujoco": ("la4vla/sim/", "la4vla/construct/robots/kinematics.py"),
}
"""Module -> beginnings of the paths that may import it."""


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str
    lazy: bool

    @property
    def here(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def waits(node: ast.AST) -> bool:
    """Whether what stands inside this node does not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports(path: Path) -> Iterator[Import]:
    """Every module a file names in an import, `from a import b` as both `a` and `a.b`, relative ones made absolute."""
    file = str(path.relative_to(ROOT))
    package = list(path.relative_to(ROOT).parent.parts)
    not_at_import = {
        id(node) for outer in ast.walk(tree(path)) if waits(outer) for node in ast.walk(outer) if node is not outer
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, id(node) in not_at_import)


EVERY_IMPORT = [item for path in FILES for item in imports(path)]


def room_of_file(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return "benchmarks" if parts[0] == "benchmarks" else parts[1]


def room_of_module(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "benchmarks":
        return "benchmarks"
    return parts[1] if parts[0] == "la4vla" and len(parts) > 1 and parts[1] != "__version__" else None


def test_the_files_are_found():
    assert {"types", "config", "rng", "manifest", "benchmarks"} <= {
        room_of_file(str(path.relative_to(ROOT))) for path in FILES
    }


def test_rooms_import_only_what_lies_below_them():
    wrong = []
    for item in EVERY_IMPORT:
        source, target = room_of_file(item.file), room_of_module(item.module)
        if target is None or target == source or source == "__init__":
            continue
        allowed = ROOMS.get(source, F0)
        if source == "construct" and target == "sim" and item.lazy:
            continue
        if target not in allowed:
            wrong.append(item.here)
    assert not wrong


def shelf_of(module: str, room: str) -> str:
    """The shelf or file that a module of `room` is or lies in."""
    return module.removeprefix(room).strip(".").split(".")[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, also those imported inside functions."""
    modules = {module_of(path) for path in FILES}
    found: dict[str, set[str]] = {module: set() for module in modules}
    for item in EVERY_IMPORT:
        if item.module in modules:
            found[module_of(ROOT / item.file)].add(item.module)
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Everything that can be reached from itself."""

    def reached(start: str) -> set[str]:
        seen, open_ends = set(), list(graph[start])
        while open_ends:
            if (module := open_ends.pop()) not in seen:
                seen.add(module)
                open_ends += graph[module]
        return seen

    return sorted(module for module in graph if module in reached(module))


@pytest.mark.parametrize("room", SHELVES)
def test_shelves_import_only_what_lies_below_them(room):
    allowed = SHELVES[room]
    used = {
        (shelf_of(source, room), shelf_of(target, room))
        for source, targets in arrows().items()
        for target in targets
        if source.startswith(room + ".") and target.startswith(room + ".")
    }
    wrong = {f"{source} -> {target}" for source, target in used if source != target and target not in allowed[source]}
    assert not wrong
    unused = {
        f"{source} -> {target}"
        for source in allowed
        for target in allowed[source] - {b for a, b in used if a == source}
    }
    assert not unused


def test_no_file_imports_itself_by_way_of_others():
    # A folder's own __init__ is named by every import of what lies in it, so only what it imports itself counts.
    assert not circles(arrows())


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]


def test_data_and_model_meet_only_in_types():
    pairs = {("data", "model"), ("model", "data")}
    assert not [i.here for i in EVERY_IMPORT if (room_of_file(i.file), room_of_module(i.module)) in pairs]


def test_rows_of_conversations_need_no_model():
    """The loader's process imports them."""
    rows = [i for i in EVERY_IMPORT if i.file == "la4vla/vlm/rows.py"]
    assert not [i.here for i in rows if room_of_module(i.module) not in F0 | {None}]


def test_the_ground_floor_is_light():
    allowed = GROUND_THIRD_PARTY | set(sys.stdlib_module_names) | {"la4vla"}
    ground = [i for i in EVERY_IMPORT if room_of_file(i.file) in F0 | {"__init__"} and i.file.startswith("la4vla/")]
    assert not [i.here for i in ground if i.module.split(".")[0] not in allowed]


@pytest.mark.parametrize("module", CONFINED)
def test_confined_modules_stay_where_they_belong(module):
    users = [i for i in EVERY_IMPORT if i.module == module or i.module.startswith(module + ".")]
    assert not [i.here for i in users if not i.file.startswith(CONFINED[module])]


def test_importing_the_packages_loads_no_simulator_and_no_trainer():
    script = (
        "import sys, importlib, pkgutil, la4vla, benchmarks\n"
        "rooms = [m.name for m in pkgutil.iter_modules(la4vla.__path__, 'la4vla.')]\n"
        "doors = 'train.run train.engines.build sim.registry serve.server construct.__main__'\n"
        "rooms += [f'la4vla.{name}' for name in doors.split()] + ['benchmarks.rollouts.evaluate']\n"
        "[importlib.import_module(name) for name in rooms]\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert not {*SIMULATORS, "deepspeed", "wandb", "tensorboard"} & set(ast.literal_eval(printed))


def test_what_a_simulators_process_runs_loads_no_torch():
    """Sixteen of them would each take a second and 200 MB for it."""
    script = "import sys, benchmarks.rollouts.rollout, la4vla.construct.recording.record; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_no_class_name_stands_twice():
    names = [node.name for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    assert not {name for name in names if names.count(name) > 1}


def broad_excepts(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = [None if item is None else ast.unparse(item) for item in caught]
            if {None, "Exception", "BaseException", "builtins.Exception"} & set(names):
                yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_broad_except():
    assert not [place for path in FILES for place in broad_excepts(path)]


def test_attributes_are_known():
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
    ]
    lines = sum(len(path.read_text().splitlines()) for path in FILES)
    assert 1000 * len(calls) / lines < 0.5, calls


def test_functions_fit_on_a_screen():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= 80
    ]
    assert not long


def test_the_checks_see_what_they_forbid(tmp_path, monkeypatch):
    """The checker itself: a file with every sin in it is caught."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    sinner = tmp_path / "la4vla" / "data" / "sinner.py"
    sinner.parent.mkdir(parents=True)
    sinner.write_text(
        "from ..model import policy\ndef f():\n    import mujoco.viewer\n"
        "try:\n    pass\nexcept (OSError, Exception):\n    pass\n"
    )
    found = {(item.module, item.lazy) for item in imports(sinner)}
    assert found == {("la4vla.model", False), ("la4vla.model.policy", False), ("mujoco.viewer", True)}
    assert list(broad_excepts(sinner)) == ["la4vla/data/sinner.py:6"]
