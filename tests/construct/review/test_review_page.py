"""Why: the page is where people spend their hours, with the keyboard, and where what they saw must be what is stored.
The server's answers are tested as requests, the page in a real headless Chromium: images move, keys score, text from
data stays text. Images carry their frame's number as a grey level."""

import base64
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import simplejpeg
import uvicorn
from fastapi.testclient import TestClient
from playwright.sync_api import expect, sync_playwright

from la4vla.config import ConstructConfig, ReadConfig, ReviewConfig
from la4vla.construct import __main__ as construct
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.review.app import COOKIE, address, is_loopback, make_app, serve
from la4vla.construct.review.session import ReviewSession
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.construct.scores import REVIEWS, Score, proposal_digest, read_scores
from la4vla.construct.steps import CANDIDATES, KEYFRAMES, READ
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import UserError

FRAMES, STRIDE, FPS = 83, 3, 80.0
KEYS = ["reach-000001", "reach-000002"]
SPANS = [(0, 21), (21, 48), (48, 83)]
EVIL = "<img src=x onerror=\"document.title='owned'\"><b>lift</b> & more"
LOCAL = "http://127.0.0.1"


def image(frame):
    return simplejpeg.encode_jpeg(np.full((24, 32, 3), 3 * frame, np.uint8), quality=95)


class TwoEpisodes:
    """A Dataset with two cameras."""

    keys = KEYS

    def stamp(self, key):
        return key

    def read(self, key):
        slope = np.linspace(0, 0.2, FRAMES)
        state = np.stack([slope, 0.6 - slope, slope * 0, 1 - slope * 5], axis=1).astype(np.float32)
        return Episode(
            key=key, task="reach", number=1, instruction="Reach <i>it</i>",
            robot=Robot(EMBODIMENT, robot_frame(EMBODIMENT.name)), fps=FPS, state=state, action=state,
            views=("front", "wrist"), frame_stride=STRIDE,
            frames=lambda view, numbers: {t: image(t if view == "front" else 82 - t) for t in numbers},
        )  # fmt: skip

    def video_faults(self, episode, decode):
        return []


def candidate(start, end, instruction=EVIL):
    return Candidate(start, end, "lift", "HOLDING", instruction, (0.0, 0.0, 0.1), 2.0, ("`<i>` is no word",))


KEY = candidate_key(KEYS[0], 21)


def make_desk(folder, **review):
    config = ConstructConfig(
        out_dir=str(folder), read=ReadConfig(path="unused"), review=ReviewConfig(context_s=0.2, **review)
    )
    with Ledger(folder / READ) as episodes, Ledger(folder / KEYFRAMES) as marks, Ledger(folder / CANDIDATES) as spans:
        for key in KEYS:
            episodes.put(key, "1", {"task": "reach", "frames": FRAMES, "faults": []})
            marks.put(key, "1", {"keyframes": [[2, "static"], [30, "gripper_close"]]})
            spans.put(key, "1", {"candidates": [candidate(*span).to_dict() for span in SPANS]})
    return ReviewSession(config, TwoEpisodes())


@pytest.fixture
def session(tmp_path):
    opened = make_desk(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def client(session):
    return TestClient(make_app(session, ""), base_url=LOCAL)


def answer(**changes):
    return {"candidate": KEY, "annotator": "ada", "quality": 3, "confidence": 1, "start": 21, "end": 48, **changes}


# -- requests


def test_a_clip_is_shown_with_its_context(client):
    clip = client.get(f"/api/candidates/{KEY}", params={"annotator": "ada"}).json()
    assert (clip["first"], clip["last"], clip["start"], clip["end"]) == (3, 64, 21, 48)  # 16 frames, from an image on
    assert clip["keyframes"] == [[30, "gripper_close"]]
    position, gripper = clip["signals"]
    assert [line["name"] for line in position["lines"]] == ["x", "y", "z"]
    for plot in (position, gripper):
        for line in plot["lines"]:
            assert len(line["values"]) == 64 - 3
            assert plot["low"] - 1e-4 < min(line["values"]) and max(line["values"]) < plot["high"] + 1e-4
    assert position["lines"][0]["values"][21 - 3] == 0, "change is counted from the clip's start"
    assert clip["answer"] is None


def test_images_are_those_of_their_frames(client):
    for view, grey in (("front", lambda t: 3 * t), ("wrist", lambda t: 3 * (82 - t))):
        shown = client.get(f"/api/candidates/{KEY}/images/{view}").json()
        assert [int(frame) for frame in shown] == list(range(3, 64, STRIDE))
        for frame, data in shown.items():
            pixels = simplejpeg.decode_jpeg(base64.b64decode(data))
            assert abs(float(pixels.mean()) - grey(int(frame))) < 2


def test_an_answer_is_stored_with_what_was_judged(client, tmp_path):
    progress = client.post("/api/scores", json=answer(start=24, comment="late")).json()["progress"]
    assert progress["mine"] == {"name": "ada", "done": 1, "total": 6}
    (stored,) = read_scores(tmp_path / REVIEWS)
    assert (stored.quality, stored.confidence, stored.start, stored.end, stored.comment) == (3, 1, 24, 48, "late")
    assert stored.of == proposal_digest(candidate(21, 48))
    assert client.get(f"/api/candidates/{KEY}", params={"annotator": "ada"}).json()["answer"]["start"] == 24
    assert client.get(f"/api/candidates/{KEY}", params={"annotator": "ben"}).json()["answer"] is None
    undone = client.post("/api/undo", json={"annotator": "ada"}).json()
    assert undone["score"]["candidate"] == KEY and undone["progress"]["all"]["done"] == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"quality": 4}, "quality"),
        ({"quality": 2.5}, "quality"),
        ({"quality": None}, "quality"),
        ({"confidence": -1}, "confidence"),
        ({"candidate": "reach-000001-00020"}, "is no candidate"),
        ({"annotator": ""}, "annotator"),
        ({"start": 22}, "multiple of 3"),
        ({"start": -3}, "no span"),
        ({"start": 48}, "no span"),
        ({"end": 84}, "no span"),
        ({"start": 42, "end": 46}, "choose 5 or more"),
        ({"extra": 1}, "extra"),
        ({"comment": "x" * 2001}, "comment"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_in_a_sentence(client, tmp_path, wrong, says):
    reply = client.post("/api/scores", json=answer(**wrong))
    assert reply.status_code == 422
    assert says in reply.json()["detail"] and reply.json()["detail"].endswith(".")
    assert read_scores(tmp_path / REVIEWS) == []


@pytest.mark.parametrize("path", ["nothing", f"{KEY}/images/nose", "..%2Fsecrets"])
def test_what_is_not_there_is_said(client, path):
    reply = client.get(f"/api/candidates/{path}", params={"annotator": "ada"})
    assert reply.status_code in (404, 422) and isinstance(reply.json()["detail"], str)


def test_a_stranger_is_refused_where_annotators_are_named(tmp_path):
    client = TestClient(make_app(make_desk(tmp_path, annotators=["ada", "ben"]), ""), base_url=LOCAL)
    assert client.get("/api/annotators").json() == ["ada", "ben"]
    shares = [client.get("/api/queue", params={"annotator": name}).json()["queue"] for name in ("ada", "ben")]
    assert set(shares[0]) | set(shares[1]) == {candidate_key(key, start) for key in KEYS for start, _ in SPANS}
    assert "review.annotators" in client.get("/api/queue", params={"annotator": "eve"}).json()["detail"]
    assert client.post("/api/scores", json=answer(annotator="eve")).status_code == 422


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", ""])
def test_other_names_for_this_machine_are_refused(client, host):
    assert client.get("/api/annotators", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:8321", "[::1]:8321"])
def test_local_names_are_let_in(client, host):
    assert client.get("/api/annotators", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_are_refused(client, tmp_path):
    refused = client.post("/api/scores", json=answer(), headers={"Origin": "http://evil.example"})
    assert refused.status_code == 403 and read_scores(tmp_path / REVIEWS) == []
    assert client.post("/api/scores", json=answer(), headers={"Origin": LOCAL}).status_code == 200


def test_a_token_is_asked_for_once(session):
    app = make_app(session, "s3cret")
    client = TestClient(app, base_url="http://lab:8321", follow_redirects=False)
    for path in ("/", "/api/annotators", "/static/review.js", "/?token=wrong", "/?token="):
        assert client.get(path).status_code == 403
    client.cookies.set(COOKIE, "wrong")
    assert client.get("/api/annotators").status_code == 403
    client.cookies.clear()
    entered = client.get("/?token=s3cret")
    assert entered.status_code == 303 and entered.headers["location"] == "/"
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert client.get("/").status_code == client.get("/api/annotators").status_code == 200


@pytest.mark.parametrize(
    "host, local", [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("lab", False)]
)
def test_which_addresses_need_a_token(host, local):
    assert is_loopback(host) == local


def test_the_address_printed_can_be_opened():
    assert address("127.0.0.1", 8321, "") == "http://127.0.0.1:8321/"
    assert address("::1", 1, "t") == "http://[::1]:1/?token=t"
    assert address("0.0.0.0", 1, "t") == f"http://{socket.gethostname()}:1/?token=t"


def test_a_port_in_use_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        session = make_desk(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(UserError, match=r"set review\.port"):
            serve(session)


def test_the_page_is_served_until_interrupted(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    session = make_desk(tmp_path, port=port)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(session,))
    process.start()
    for _ in range(200):
        try:
            assert "Clip review" in httpx.get(f"http://127.0.0.1:{port}/").text
            break
        except httpx.ConnectError:
            time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 0


def test_nothing_to_review_is_said(tmp_path):
    config = ConstructConfig(out_dir=str(tmp_path), read=ReadConfig(path="unused"))
    with pytest.raises(UserError, match="construct propose"):
        ReviewSession(config, TwoEpisodes())


def test_the_command_prints_how_far_everyone_is(tmp_path, monkeypatch, capsys):
    session = make_desk(tmp_path, annotators=["ada", "ben"])
    session.config.review.overlap = 1.0
    ReviewSession(session.config, TwoEpisodes()).put(Score(**answer()))
    monkeypatch.setattr(construct, "open_dataset", lambda config: TwoEpisodes())
    construct.review(session.config, serve=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[1], line[3]) for line in lines[:3]] == [
        ("ada", "1", "6"), ("ben", "0", "6"), ("everybody", "1", "6"),
    ]  # fmt: skip


def test_only_the_page_needs_a_web_server(tmp_path, monkeypatch, capsys):
    config = make_desk(tmp_path).config
    monkeypatch.setattr(construct, "open_dataset", lambda config: TwoEpisodes())
    monkeypatch.delitem(sys.modules, "la4vla.construct.review.app")
    monkeypatch.delattr("la4vla.construct.review.app")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    construct.review(config, serve=False)
    assert "everybody" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"needs fastapi.*pip install"):
        construct.review(config, serve=True)


# -- the page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def server(session):
    """Where the page is, on a real socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(make_app(session, ""), log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    for _ in range(100):
        if running.started:
            break
        time.sleep(0.05)
    assert httpx.get(url).status_code == 200
    yield url
    running.should_exit = True
    thread.join()


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no browser; apt-get install chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


def sign_in(browser, url, name):
    """A page of an annotator's own browser, and what goes wrong in its scripts."""
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(url)
    page.get_by_label("Your name").first.fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#views canvas")).to_have_count(2)
    return page, errors


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def greys(page):
    """What both views show just now."""
    drawn = "canvas => canvas.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
    return tuple(page.evaluate(f"() => [...document.querySelectorAll('#views canvas')].map({drawn})"))


def stored(session, annotator="ada"):
    return [item for item in read_scores(Path(session.config.out_dir) / REVIEWS) if item.annotator == annotator]


@pytest.mark.slow
def test_an_annotator_works_by_keyboard(session, server, browser):
    page, errors = sign_in(browser, server, "ada")
    place, message = page.locator("#place"), page.locator("#message")
    expect(place).to_have_text("1 of 6")

    expect(page.locator("canvas[data-frame]")).to_have_count(2)
    seen = set()
    for _ in range(60):
        seen.add(greys(page))
        page.wait_for_timeout(15)
    assert len(seen) > 5, "the images move"
    assert all(abs(front + wrist - 246) < 5 for front, wrist in seen), "all views show the same moment"

    expect(page.locator("#instruction")).to_have_text(EVIL)
    expect(page.locator("#reasons li")).to_have_text("`<i>` is no word")
    assert page.locator("#work img, blockquote b, #task i").count() == 0
    assert page.title() == "Review of clips"
    assert page.locator("#signals polyline").count() == 4 and page.locator("#signals g.mark").count() == 2

    press(page, "Enter")
    expect(message).to_contain_text("Choose a quality first")
    press(page, "3 Enter")
    expect(message).to_contain_text("how sure")
    press(page, "2 e Enter 1 q ] ] . , , Enter")  # faster than the server answers: nothing typed is lost
    expect(place).to_have_text("3 of 6")
    expect(page.locator("#mine-text")).to_have_text("mine 2 / 6")
    first, second = stored(session)
    assert (first.candidate, first.quality, first.confidence, first.start, first.end) == (
        candidate_key(KEYS[0], 0), 2, 2, 0, 21,
    )  # fmt: skip
    assert (second.candidate, second.quality, second.confidence, second.start, second.end) == (KEY, 1, 0, 27, 45)

    press(page, "u")
    expect(place).to_have_text("2 of 6")
    expect(page.locator("#start")).to_have_text("27 (+6)")
    expect(page.locator("#quality [aria-pressed=true]")).to_contain_text("low")
    assert stored(session) == [first]
    press(page, "0 m")
    page.keyboard.type("3 e, too late")  # into the comment, not into the answer
    press(page, "Escape Space")
    expect(place).to_have_text("3 of 6")
    assert (stored(session)[1].quality, stored(session)[1].comment) == (0, "3 e, too late")

    press(page, "k ArrowRight ArrowRight ? Escape")
    expect(place).to_have_text("4 of 6")
    page.reload()
    expect(page.locator("#mine-text")).to_have_text("mine 2 / 6")
    expect(place).to_have_text("1 of 6")
    expect(page.locator("#key")).to_have_text(candidate_key(KEYS[0], 48))
    assert not errors


@pytest.mark.slow
def test_two_annotators_at_once_by_mouse_and_a_server_that_goes_away(session, server, browser):
    (ada, errors_ada), (ben, errors_ben) = sign_in(browser, server, "ada"), sign_in(browser, server, "ben")
    for page, quality in ((ada, "3 high"), (ben, "0 unusable")):
        page.locator("#quality").get_by_role("button", name=quality).click()
        page.locator("#confidence").get_by_role("button", name="medium").click()
        page.get_by_role("button", name="end earlier").click()
        press(page, "Enter")
        expect(page.locator("#place")).to_have_text("2 of 6")
    assert [(item.quality, item.end) for item in stored(session) + stored(session, "ben")] == [(3, 18), (0, 18)]
    expect(ben.locator("#all-text")).to_have_text("all 1 / 6")
    ben.route("**/api/scores", lambda route: route.abort())
    press(ben, "3 e Enter")
    expect(ben.locator("#message")).to_contain_text("does not answer")
    expect(ben.locator("#place")).to_have_text("2 of 6")
    ben.unroute("**/api/scores")
    press(ben, "Enter")
    expect(ben.locator("#place")).to_have_text("3 of 6")
    assert len(stored(session, "ben")) == 2
    assert not errors_ada + errors_ben
