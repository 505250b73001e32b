"""What `schema: construct` holds: from demonstrations to shards of LA clips, step by step, with every default."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from la4vla.config.checks import choice, within
from la4vla.types import UserError

QUESTIONS = ("subtasks", "next", "plan", "actions", "completion", "direction", "scene", "next_system")
ASKED_FOR = ("scene", "next_system")  # questions that are not written unless they are named
"""Types of questions about demonstrations (docs/texts.md)."""


@dataclass
class IdleConfig:
    """Samples in which nothing is commanded can be left out of the shard folders (la4vla/data/shards/idle.py)."""

    threshold: float = 0.0  # a sample stays where a command is larger; 0: all stay (GPLA's paper: 0.1)
    unit: str = "raw"  # of the threshold: raw, the robot's own | normalized, -1 to 1 from minimum to maximum
    dims: list[str] = field(default_factory=list)  # action dims that count, any of them is enough; empty: all
    frames: int = 8  # of the chunk that a sample is; as many as model and recipe predict
    which: str = "any"  # any frame of the chunk is enough | first: its first one decides (GPLA's release)


@dataclass
class ReadConfig:
    """Where the demonstrations are and what their numbers mean (docs/construction.md, "Reading")."""

    format: str = "recorded"  # recorded (by `record`) | lerobot (v2.0, v2.1, v3.0) | libero (HDF5) | npz | rlds
    path: str = MISSING  # folder of the dataset; rlds: of one version of it, where features.json lies
    split: str = "train"  # rlds: the part of the dataset that is read
    robot: str = ""  # a file name of la4vla/construct/robots/ without .yaml, or a path; recorded: the simulator's own
    views: dict[str, str] = field(default_factory=dict)  # our name -> the dataset's; empty: all, under their own names
    state: list[str] = field(default_factory=list)  # columns of the state, joined in order; empty: the usual ones
    action: list[str] = field(default_factory=list)  # columns of the action, joined in order; empty: the usual ones
    instruction: list[str] = field(
        default_factory=list
    )  # rlds: features of the task's sentence, the first that says something; empty: the usual one
    subtasks: str = ""  # what names the sub-task of each frame (docs/rlds.md): a column; empty: nothing
    captions: str = ""  # rlds: sub-tasks or goals beside the records (docs/rlds.md): a file or a folder; empty: none
    episode_id: str = ""  # rlds: feature that names an episode in `captions`
    last_step: bool = False  # rlds: keep the last step, though RLDS does not define its action; Bridge and DROID do
    images: bool = True  # false: leave the images alone, for datasets without their videos; only la/ is written
    frame_stride: int = 1  # images are taken at every n-th frame; recorded and npz have their own
    idle: IdleConfig = field(default_factory=IdleConfig)
    skip_episodes: int = 0  # leave out the first so many: what another config with max_episodes holds is held out here
    max_episodes: int = 0  # read the first so many only, of those that are left; 0: all
    max_bad_episodes: int = 0  # episodes left out for their faults before the step stops; all are listed either way
    decode: bool = False  # decode every image while reading, not only count frames


@dataclass
class RecordConfig:
    """Demonstrations from the scripted experts of a simulator (construct/recording/record.py)."""

    simulator: str = "metaworld"  # metaworld | libero: a name of la4vla/sim/registry.py
    tasks: list[str] = field(default_factory=list)  # env names such as reach-v3 or libero_object_03
    episodes: int = 25  # successful demonstrations kept a task
    first_episode: int = 1000  # initial states `first_episode`, +1, ...: held-out ones are skipped
    held_out: bool = False  # true: demonstrate initial states that evaluations use, too; no success rate is fair then
    views: list[str] = field(default_factory=list)  # cameras; empty: the simulator's usual ones
    image_size: int = 112
    frame_stride: int = 2  # every n-th frame is rendered and stored
    fast: bool = False  # draw without shadows, reflections and anti-aliasing; evaluate with the same setting
    action_noise: float = 0.1  # std of Gaussian noise on the executed translation command, for coverage
    seed: int = 0
    processes: int = 2


@dataclass
class KeyframeConfig:
    """Keyframe detection (FACTS 1.3.1): the paper's steps; its numbers were lost in print, so these are ours."""

    smooth_window: int = 11  # frames, Savitzky-Golay; shortened to an odd number <= T for short episodes
    smooth_order: int = 3  # degree of its polynomial
    rotation_weight: float = 0.5  # weight of a rotation dim in the motion signal, a translation or joint dim has 1
    scale_floor: float = 0.05  # a dim is scaled by at least this share of the largest of its kind (no amplified noise)
    rule: str = "mean"  # static below `threshold` of the episode's mean motion | quantile: below its `quantile`
    threshold: float = 0.5  # of the episode's mean motion
    quantile: float = 0.2  # share of the episode's frames; at least some are static then, whatever it does
    static_window: int = 5  # frames
    static_share: float = 0.8  # of the window's frames that must be below the threshold
    gripper_threshold: float = 0.5  # of the min-max normalised gripper channel
    gripper_window: int = 5  # frames on each side
    gripper_min_range: float = 0.15  # of the open-closed span; an episode whose gripper moves less has no events
    min_event_distance: int = 10  # frames
    plots: int = 0  # episodes drawn into out_dir/plots/: signal, threshold, rests, gripper, events


@dataclass
class ProposeConfig:
    """The kinematic labeller (propose/kinematic.py); no paper has numbers for it, so these are our defaults."""

    min_clip_frames: int = 5  # shorter segments join the neighbour that moves most alike (FACTS 1.3.4)
    command_jump: float = 0.3  # of a usual command; a translation command that changes more at once begins a segment
    bend_tolerance: float = 0.02  # m the path may leave the straight line of one segment
    bend_angle: float = 1.0  # rad; ... and where it turns less all the same is one segment
    min_move: float = 0.015  # m; a segment that moves and turns less is a wait and makes no clip
    slight_move: float = 0.04  # m; moves shorter than this are called slight
    second_axis: float = 0.5  # an axis is named if it moves at least this fraction of the dominant one
    min_turn: float = 0.3  # rad; a segment is a rotation if it turns more than this
    turn_arm: float = 0.15  # m; ... and this times the turn in rad exceeds the distance moved


@dataclass
class VlmConfig:
    """Proposals of a vision-language model behind an OpenAI-compatible endpoint (FACTS 1.3.3, 1.3.4)."""

    model: str = "qwen3-vl-plus"
    base_url: str = ""  # of the endpoint, with /v1
    api_key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key
    fps: float = 2.0  # frames a second that are shown
    width: int = 320  # pixels
    height: int = 240  # pixels; an image keeps its proportions and is as large as fits
    frames_as: str = (
        "video"  # video: a view is a `video` part, Qwen's own | images: an image_url a frame, at twice the tokens
    )
    answer_format: str = "json_schema"  # asked of the endpoint: json_schema | json_object | text; all are read alike
    temperature: float = 0.1
    attempts: int = 4  # answers an episode until one is usable: the first and three retries
    backoff_s: float = 2.0  # before a request that failed is repeated the first time; doubles each time
    concurrency: int = 8  # episodes in flight
    requests_per_minute: int = 300
    timeout_s: float = 120.0  # of one request
    max_failed_episodes: int = 0  # episodes without a usable answer before the step stops
    input_price: float = 0.0  # of a million input tokens, for the estimate of --dry-run
    output_price: float = 0.0  # of a million output tokens


@dataclass
class JudgeConfig:
    """What a proposal must satisfy by machine before people see it (FACTS 1.3.2, 1.3.4); all numbers are ours."""

    slack_frames: int = 3  # a span may reach so far past the episode or into the next (0.2 s at 15 Hz); it is cut
    min_gripper_change: float = 0.1  # of the open-closed span; a grasp or a release moves the gripper at least so far
    direction_cosine: float = 0.8  # between the motion and the direction named; below it a score of 2
    straightness: float = 0.8  # distance over path length; below it a score of 2
    edge_frames: int = 5  # on each side of a boundary, over which the motion must change
    edge_change: float = 0.5  # of the faster side's motion; less than this on both sides is a score of 2


@dataclass
class ReviewConfig:
    """The web page where people score candidates (FACTS 1.3.5)."""

    annotators: list[str] = field(default_factory=list)  # names; empty: whoever logs in, and no assignment
    overlap: float = 0.1  # share of the candidates that two annotators get
    host: str = "127.0.0.1"  # another one asks for a token, printed at the start
    port: int = 8321
    context_s: float = 0.5  # s of the episode shown, dimmed, before and after a candidate; its ends move no further


@dataclass
class SecondJudgeConfig:
    """A learned judge beside the rules: how well a clip's sentence fits its motion (docs/review.md)."""

    scorer: str = (
        ""  # run or checkpoint of learner grounding, or action_only:, clip:, siglip: and a folder; empty: none
    )
    device: str = "cpu"  # of the scorer: cpu | cuda
    window: int = 8  # frames of a motion that is scored, at most the scorer's horizon; a clip's score is the mean
    windows: int = 4  # of a clip at most, evenly


@dataclass
class FilterConfig:
    """What becomes a clip (FACTS 1.3.5)."""

    by: str = "automatic"  # automatic: the judge's score | human: the mean of the annotators'; unreviewed are left out
    # | grounding: the second judge's score | both: the judge's and the second judge's
    min_quality: float = 2.0  # on the scale 0 .. 3; not of filter.by=grounding
    primitives: list[str] = field(default_factory=list)  # only these; empty: all
    direction_purity: float = 0.0  # above 0: only clips whose instruction names one direction, and whose motion's
    # cosine with it is at least this: direction-following clips (FACTS 1.2)
    arms: list[str] = field(default_factory=list)  # of robots with two: only clips of left | right | both; empty: all
    min_grounding: float = 0.0  # on the second judge's own scale; `la4vla eval judges` finds it


@dataclass
class TextsConfig:
    """`la4vla construct texts`: conversations about the demonstrations (docs/texts.md)."""

    folder: str = "texts"  # in out_dir; other questions or another codec go into a folder of another name
    annotator: str = "kinematic"  # kinematic: sub-tasks are the kept clips | endpoint: a VLM writes them (`vlm`)
    questions: list[str] = field(default_factory=lambda: [name for name in QUESTIONS if name not in ASKED_FOR])
    views: list[str] = field(default_factory=list)  # cameras that are shown, in order; empty: all
    every: int = (
        0  # frames after which a sub-task is asked about again (plan, actions, direction); 0: at its start only
    )
    next_every: int = (
        0  # the same of the questions what comes next: a policy that is asked again stands amid a sub-task
    )
    threshold: float = 0.025  # m along one axis from which a direction is named (FACTS 2.2)
    negatives: int = 1  # completion: questions answered `no` for each one answered `yes`
    plan: bool = True  # actions: the plan stands in the question (D.4); false: they are asked for directly (B.2)
    hand: bool = False  # plan and actions: the question says where the hand is
    codec: dict[str, Any] = field(default_factory=lambda: {"codec": "decimals"})  # of actions: see docs/texts.md
    scenes: int = 2  # scene: images with toys on the table that are drawn of each episode's beginning
    held_out_scenes: float = 0.1  # share of the episodes whose questions go into FOLDER_held_out_scenes
    held_out_wordings: float = 0.1  # share of the others that are also asked in held-out words, in ..._wordings


@dataclass
class ConstructConfig:
    """`la4vla construct`: demonstrations -> LA clips, their twin with images, and whole-task clips."""

    out_dir: str = MISSING  # gets the ledgers of all steps, and la/, vla/ and task/ shard folders
    proposer: str = "kinematic"  # kinematic | vlm | tasks: the parts that the dataset names | episode: each is one clip
    read: ReadConfig = field(default_factory=ReadConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    propose: ProposeConfig = field(default_factory=ProposeConfig)
    vlm: VlmConfig = field(default_factory=VlmConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    grounding: SecondJudgeConfig = field(default_factory=SecondJudgeConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    texts: TextsConfig = field(default_factory=TextsConfig)
    shards: int = 32  # tars a folder: at least data.streams
    jpeg_quality: int = 95  # of images that were not JPEG already
    seed: int = 0  # of the wording of instructions and the assignment of reviews


INTERVALS = {
    **dict.fromkeys(("frame_stride", "shards", "attempts", "concurrency", "requests_per_minute", "width"), "[1, inf)"),
    **dict.fromkeys(
        ("height", "min_clip_frames", "smooth_window", "static_window", "gripper_window", "edge_frames"), "[1, inf)"
    ),
    **dict.fromkeys(("image_size", "processes", "episodes", "window", "windows"), "[1, inf)"),
    **dict.fromkeys(
        (
            "skip_episodes",
            "max_episodes",
            "max_bad_episodes",
            "max_failed_episodes",
            "min_event_distance",
            "slack_frames",
            "plots",
        ),
        "[0, inf)",
    ),
    **dict.fromkeys(("seed", "first_episode"), "[0, inf)"),
    **dict.fromkeys(("temperature", "context_s", "action_noise", "rotation_weight", "threshold"), "[0, inf)"),
    **dict.fromkeys(("input_price", "output_price"), "[0, inf)"),
    **dict.fromkeys(("fps", "timeout_s", "backoff_s", "bend_tolerance", "command_jump"), "(0, inf)"),
    **dict.fromkeys(
        ("overlap", "static_share", "quantile", "scale_floor", "gripper_threshold", "straightness"), "[0, 1]"
    ),
    **dict.fromkeys(("smooth_order", "min_move", "slight_move", "min_turn", "turn_arm"), "[0, inf)"),
    **dict.fromkeys(
        ("second_axis", "gripper_min_range", "min_gripper_change", "edge_change", "direction_purity"), "[0, 1]"
    ),
    **dict.fromkeys(("every", "next_every", "negatives", "scenes"), "[0, inf)"),
    "frames": "[1, inf)",
    **dict.fromkeys(("held_out_scenes", "held_out_wordings"), "[0, 1)"),
    **{
        "direction_cosine": "[-1, 1]",
        "bend_angle": "[0, 3.1416]",
        "jpeg_quality": "[1, 100]",
        "min_quality": "[0, 3]",
        "port": "[0, 65535]",
    },
}
"""Where the numbers must lie, by the field's name."""


def validate_construct(config: ConstructConfig) -> None:
    """Raises UserError for a value that is not one of its few, or out of its interval."""
    choice("proposer", config.proposer, ("kinematic", "vlm", "tasks", "episode"))
    choice("read.format", config.read.format, ("recorded", "lerobot", "libero", "npz", "rlds"))
    choice("read.idle.unit", config.read.idle.unit, ("raw", "normalized"))
    choice("read.idle.which", config.read.idle.which, ("any", "first"))
    _validate_captions(config)
    choice("keyframes.rule", config.keyframes.rule, ("mean", "quantile"))
    choice("vlm.frames_as", config.vlm.frames_as, ("video", "images"))
    choice("vlm.answer_format", config.vlm.answer_format, ("json_schema", "json_object", "text"))
    choice("filter.by", config.filter.by, ("automatic", "human", "grounding", "both"))
    for arm in config.filter.arms:
        choice("filter.arms", arm, ("left", "right", "both"))
    choice("grounding.device", config.grounding.device, ("cpu", "cuda"))
    if config.filter.by in ("grounding", "both") and not config.grounding.scorer:
        raise UserError(f"filter.by={config.filter.by} needs a second judge; set grounding.scorer to one.")
    choice("texts.annotator", config.texts.annotator, ("kinematic", "endpoint"))
    for question in config.texts.questions:
        choice("texts.questions", question, QUESTIONS)
    if not config.texts.questions or not config.texts.folder or {"/", "."} & set(config.texts.folder):
        raise UserError(
            "texts.questions must name some questions, and texts.folder a folder of out_dir, without dots or slashes."
        )
    values = asdict(config)
    within("", values, INTERVALS)
    for group in ("read", "record", "keyframes", "propose", "vlm", "judge", "grounding", "review", "filter", "texts"):
        within(f"{group}.", values[group], INTERVALS)
    within("read.idle.", values["read"]["idle"], INTERVALS)


def _validate_captions(config: ConstructConfig) -> None:
    read = config.read
    if config.proposer == "tasks" and not (read.subtasks or read.captions):
        raise UserError(
            "proposer=tasks takes the parts that a dataset names, and nothing says where their sentences are; set "
            "read.subtasks or read.captions (docs/rlds.md), or proposer=kinematic for a dataset without captions."
        )
    if read.subtasks and read.format not in ("lerobot", "rlds"):
        raise UserError(f"read.subtasks goes with read.format lerobot or rlds, not {read.format}; leave it empty.")
    for name, value in (("captions", read.captions), ("episode_id", read.episode_id), ("last_step", read.last_step)):
        if value and read.format != "rlds":
            raise UserError(f"read.{name} goes with read.format rlds, not {read.format}; leave it out.")
    if read.subtasks and read.captions:
        raise UserError(
            "read.subtasks and read.captions both say what the parts of an episode are called; leave one of them empty."
        )
