"""The page at `/ui`: its headers and words in-process, all else in a real Chromium against the real application."""

import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

import serve.page
from bundle import Predictor
from serve.app import attach_engine, build_app
from serve.engine import open_engine
from serve.settings import ServeSettings
from tasks import QuestionInput, TextInput
from tasks.catalogue import TASKS
from tests.bundles import LABELS, write_bundle
from tests.serve.chromium import Browser, Tab, running

TEXT = "Where is my card? 卡在哪里 💳 In Zürich 👩‍👩‍👧‍👦 I lost it <b>today</b>."
MARKUP = "<img src=x onerror=\"document.title='broken'\"> where is <script>document.title='broken'</script> my card"
PAGE = Path(serve.page.__file__).with_name("page.html").read_text(encoding="utf-8")
READY = "typeof byId === 'function' && !byId('about').hidden"
REFUSED = "typeof byId === 'function' && !byId('error').hidden"


def words() -> dict[str, dict[str, str]]:
    found = re.search(r'<script type="application/json" id="words">(.*?)</script>', PAGE, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


# without a browser


def test_the_page_comes_with_a_policy_that_lets_only_its_own_script_and_style_in(tmp_path: Path) -> None:
    app, _ = application(tmp_path / "bundle", "single_label")
    response = TestClient(app).get("/ui")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.text == PAGE
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy.keys() >= {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"}
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for directive in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[directive])
    assert "unsafe" not in response.headers["content-security-policy"]


def test_another_script_has_another_hash() -> None:
    first, second = (
        serve.page.page_headers(f"<style>a</style><script>{script}</script>")["Content-Security-Policy"].split("; ")
        for script in ("b", "c")
    )
    assert [one for one, other in zip(first, second, strict=True) if one != other] == [first[1]]
    assert first[1].startswith("script-src")


def test_the_page_names_no_address_outside_itself() -> None:
    named = {one for one in re.findall(r"""[a-z]+://[^\s"'<>]+""", PAGE) if one != "http://www.w3.org/2000/svg"}
    assert named == set()
    assert re.findall(r'(?:src|href)="([^"]+)"', PAGE.split("<script>")[0])[1:] == ["certificate"]
    assert not re.search(r"@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", PAGE)


def test_both_languages_hold_the_same_words_with_the_same_gaps() -> None:
    english, chinese = words()["en"], words()["zh"]
    assert english.keys() == chinese.keys()
    for key in english:
        assert set(re.findall(r"\{\w+\}", english[key])) == set(re.findall(r"\{\w+\}", chinese[key])), key
        assert english[key] != chinese[key]


def test_every_word_is_used_and_every_used_word_is_there() -> None:
    markup, _, rest = PAGE.partition('<script type="application/json" id="words">')
    code = rest.partition("</script>")[2]
    used = {*re.findall(r'data-word="(\w+)"', markup), *re.findall(r'word\("(\w+)"', code)}
    used |= {*re.findall(r'\["(\w+)", ', code), *re.findall(r'{ word: "(\w+)" }', code)}
    used |= {f"task_{name}" for name in TASKS} | {
        f"field_{name}" for names in re.findall(r"fields: \[(.*?)\]", code) for name in re.findall(r"\w+", names)
    }
    # heads of the lists of fields look like rows of facts
    assert used - {"text", "question"} == set(words()["en"])


def test_it_has_a_form_for_every_task() -> None:
    code = PAGE.partition("const TASKS = {")[2].partition("};")[0]
    assert set(re.findall(r"^  (\w+): ", code, re.MULTILINE)) == TASKS.keys()


# in a browser


@dataclass(frozen=True)
class Served:
    """The application of a bundle on a port of this machine."""

    url: str
    predictor: Predictor


class Guard:
    """Asks for a key on all paths but the page's, and has a certificate."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = JSONResponse({"error": "an API key is needed"}, 401)
        answer: ASGIApp = self._app
        if scope["path"] == "/certificate":
            answer = HTMLResponse("<p>certified</p>")
        if scope["path"] != "/ui" and Headers(scope=scope).get("authorization") != "Bearer a-key":
            answer = refusal
        await answer(scope, receive, send)


class Busy:
    """Answers every question with a 429."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: Response = JSONResponse({"error": "too much waits"}, 429, {"Retry-After": "7"})
        await (refusal if scope["path"] == "/predict" else self._app)(scope, receive, send)


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    config = uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def application(folder: Path, task: str) -> tuple[ASGIApp, Predictor]:
    folder.mkdir()
    write_bundle(folder, task=task)
    app = build_app()
    engine = open_engine(ServeSettings(bundle=folder, threads=1))
    attach_engine(app, engine)
    return app, engine.predictor


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    with running(program, tmp_path_factory.mktemp("chromium")) as one:
        yield one


def checked(tab: Tab, url: str) -> None:
    """No script failed, nothing was kept out by the policy, and no request left the service."""
    tab.evaluate("0")  # events that are under way come before its answer
    assert tab.complaints == []
    assert url + "/ui" in tab.requests
    own = (url + "/", "data:image/svg+xml,", f"blob:{url}/")
    assert [one for one in tab.requests if not one.startswith(own)] == []


@contextmanager
def opened(browser: Browser, url: str, language: str = "en-US", until: str = READY) -> Iterator[Tab]:
    with browser.tab(language) as tab:
        tab.open(f"{url}/ui")
        tab.wait_for(until)
        yield tab
        checked(tab, url)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    app, predictor = application(tmp_path / "bundle", request.param)
    with listening(app) as url:
        yield Served(url, predictor)


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Tab]:
    with opened(browser, served.url) as one:
        yield one


def of_task(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("served", [name], indirect=True)


def ask(tab: Tab, **fields: str) -> None:
    """Types and presses Ctrl+Enter; returns when an answer or an error is there."""
    for name, text in fields.items():
        tab.type(f"#field-{name}", text)
    tab.evaluate("byId('result').removeAttribute('aria-busy')")
    tab.press("Enter", 13, control=True)
    tab.wait_for("byId('result').getAttribute('aria-busy') === 'false'")


def shown_scores(tab: Tab) -> list[str]:
    return tab.texts("#answer .bars .score")


def expected_scores(rows: list[Any]) -> list[str]:
    return [f"{100 * row['score']:.1f}%" for row in rows]


@pytest.mark.real
@of_task("single_label")
def test_labels_are_bars_and_the_model_is_named(tab: Tab, served: Served) -> None:
    assert tab.evaluate("document.activeElement.id") == "field-text"
    ask(tab, text=TEXT)
    labels = served.predictor(TEXT)[0]["labels"]
    assert tab.texts("#answer .bars .name") == [one["label"] for one in labels]
    assert shown_scores(tab) == expected_scores(labels)
    widths = tab.evaluate("Array.from(document.querySelectorAll('.bar'), (one) => parseFloat(one.style.width))")
    assert widths == pytest.approx([100 * one["score"] for one in labels], abs=0.01)
    assert tab.text("#headline") == labels[0]["label"]
    assert tab.texts("#said") == [f"Answer: {labels[0]['label']}"]
    assert re.fullmatch(r"[\d.,]+ ms, there and back", tab.text("#took"))
    facts = dict(zip(tab.texts("#facts dt"), tab.texts("#facts dd"), strict=True))
    assert (facts["Name"], facts["Labels"], facts["Checkpoint"]) == ("tiny", str(len(LABELS)), "c" * 12)
    assert tab.evaluate("byId('certificate').href") == served.url + "/certificate"
    alone = tab.text("#headline"), shown_scores(tab)
    ask(tab, text="my card", text_pair="lost")
    pair = served.predictor(TextInput("my card", "lost"))[0]["labels"]
    assert shown_scores(tab) == expected_scores(pair) != alone[1]


@pytest.mark.real
@of_task("multi_label")
def test_given_labels_stand_first_and_each_threshold_is_drawn(tab: Tab, served: Served) -> None:
    for text in ("lost", "blocked", TEXT):
        ask(tab, text=text)
        given = [one["label"] for one in served.predictor(text)[0]["labels"]]
        assert tab.texts("#answer .given .name") == given
        assert tab.text("#headline") == (", ".join(given) or "No label reaches its threshold")
        names = tab.texts("#answer .bars .name")
        assert names[: len(given)] == given
        assert sorted(names) == sorted(LABELS)
        drawn = tab.evaluate("Array.from(document.querySelectorAll('.threshold'), (one) => one.style.left)")
        tuned = {"lost_card": "40%", "pin_blocked": "60%"}
        assert drawn == [tuned.get(name, "50%") for name in names]


@pytest.mark.real
@of_task("regression")
def test_a_number_stands_on_its_scale(tab: Tab, served: Served) -> None:
    for pair in (("my card", "lost"), ("lost", "lost"), ("blocked", "today")):
        ask(tab, text=pair[0], text_pair=pair[1])
        score = served.predictor(TextInput(*pair))[0]["score"]
        assert float(tab.text("#headline")) == pytest.approx(score, rel=1e-3)
        low, high = min(2.5 - 3, score), max(2.5 + 3, score)
        left = float(tab.evaluate("parseFloat(document.querySelector('.point').style.left)"))
        assert left == pytest.approx(100 * (score - low) / (high - low), abs=0.01)
    assert tab.texts(".tick") == ["-0.5", "1", "2.5", "4", "5.5"]


@pytest.mark.real
@of_task("token_classification")
def test_entities_are_marked_at_their_characters_behind_emoji_too(tab: Tab, served: Served) -> None:
    ask(tab, text=TEXT)
    entities = served.predictor(TEXT)[0]["entities"]
    assert any("💳" in TEXT[: one["start"]] for one in entities)
    assert "👩" in "".join(one["text"] for one in entities) or any(one["start"] > TEXT.index("👦") for one in entities)
    marks = tab.evaluate("Array.from(document.querySelectorAll('mark'), (one) => one.firstChild.data)")
    assert marks == [one["text"] for one in entities]
    assert tab.texts("mark .kind") == [one["label"] for one in entities]
    before = """Array.from(document.querySelectorAll('mark'), (mark) => {
      const read = document.createRange();
      read.setStart(document.querySelector('.reading'), 0);
      read.setEndBefore(mark);
      const copy = read.cloneContents();
      copy.querySelectorAll('.kind').forEach((kind) => kind.remove());
      return copy.textContent;
    })"""
    assert tab.evaluate(before) == [TEXT[: one["start"]] for one in entities]
    tab.evaluate("document.querySelectorAll('mark .kind').forEach((kind) => kind.remove())")
    assert tab.texts(".reading") == [TEXT]
    assert tab.text("#headline") == f"Entities found: {len(entities)}"
    assert shown_scores(tab) == expected_scores(entities)


@pytest.mark.real
@of_task("question_answering")
def test_the_answer_is_marked_in_its_context(tab: Tab, served: Served) -> None:
    for context in (TEXT, "💳💳💳 卡在哪里 " * 9 + TEXT):
        ask(tab, question="Where is my card?", context=context)
        answers = served.predictor(QuestionInput("Where is my card?", context), top_k=3)[0]["answers"]
        assert tab.texts("mark") == [answers[0]["answer"]] != [""]
        assert tab.texts(".reading") == [context]
        before = tab.evaluate("document.querySelector('mark').previousSibling?.data ?? ''")
        assert before == context[: answers[0]["start"]]
        assert shown_scores(tab) == expected_scores(answers)


@pytest.mark.real
@of_task("token_classification")
def test_markup_is_text_and_foreign_script_does_not_run(browser: Browser, served: Served) -> None:
    with opened(browser, served.url) as tab:
        ask(tab, text=MARKUP)
        tab.evaluate("document.querySelectorAll('mark .kind').forEach((kind) => kind.remove())")
        assert tab.texts(".reading") == [MARKUP]
        assert tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
    with browser.tab() as tab:
        tab.open(served.url + "/ui")
        tab.wait_for(READY)
        written = "new Promise((done) => done((byId('title').innerHTML = '<b>'))).catch((error) => error.name)"
        assert tab.evaluate(written) == "TypeError"
        sent = "fetch('https://example.org/').then(() => 'sent', (error) => error.name)"
        assert tab.evaluate(sent) == "TypeError"
        assert any("connect-src" in one for one in tab.complaints)
        assert not any("example.org" in one for one in tab.requests)


@pytest.mark.real
@of_task("single_label")
def test_an_error_is_shown_in_the_service_s_words_and_goes_with_the_next_answer(tab: Tab, served: Served) -> None:
    ask(tab, text="lost")
    ask(tab, text="   ")
    assert tab.text("[role=alert]") == "400: inputs.text: the text is empty"
    assert tab.evaluate("byId('result').hidden")
    ask(tab, text="a" * 20_001)
    assert "20001 characters, at most 20000 are taken (PARITYBIT_MAX_TEXT_CHARS)" in tab.text("[role=alert]")
    ask(tab, text="lost")
    assert tab.evaluate("byId('error').hidden && !byId('result').hidden")
    ask(tab, text="where is my card " * 100)
    assert "longer than the 48 tokens" in tab.text("#answer")


@pytest.mark.real
def test_a_refusal_says_when_to_come_back_and_a_stopped_service_is_named(browser: Browser, tmp_path: Path) -> None:
    app, _ = application(tmp_path / "bundle", "single_label")
    with browser.tab() as tab:
        with listening(Busy(app)) as url:
            tab.open(url + "/ui")
            tab.wait_for(READY)
            ask(tab, text="lost")
            assert tab.text("[role=alert]") == "429: too much waits (try again in 7 s)"
        ask(tab, text="lost")
        assert tab.text("[role=alert]") == "The service does not answer."


@pytest.mark.real
def test_a_key_is_asked_for_and_sent(browser: Browser, tmp_path: Path) -> None:
    app, predictor = application(tmp_path / "bundle", "single_label")
    with listening(Guard(app)) as url, opened(browser, url, until=REFUSED) as tab:
        assert tab.text("[role=alert]") == "401: an API key is needed"
        assert tab.evaluate("byId('access').open && byId('about').hidden && byId('key').type === 'password'")
        tab.type("#key", "a-key")
        tab.press("Tab", 9)
        tab.wait_for("!byId('about').hidden && byId('error').hidden")
        ask(tab, text="lost")
        assert tab.text("#headline") == predictor("lost")[0]["labels"][0]["label"]
        folder = tmp_path / "downloads"
        tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        tab.click("#certificate")
        saved = folder / "tiny-certificate.html"
        deadline = time.monotonic() + 60
        while not saved.exists():
            assert time.monotonic() < deadline
            tab.evaluate("0")
            time.sleep(0.05)
        assert saved.read_text() == "<p>certified</p>"


@pytest.mark.real
@of_task("multi_label")
def test_a_chinese_reader_gets_chinese_and_may_switch(browser: Browser, served: Served) -> None:
    with opened(browser, served.url, "zh-CN") as tab:
        assert tab.evaluate("document.documentElement.lang") == "zh-CN"
        ask(tab, text=TEXT)
        chinese, english = words()["zh"], words()["en"]
        assert tab.text("#ask") == chinese["ask"]
        assert re.fullmatch(r"往返用时 [\d.,]+ 毫秒", tab.text("#took"))
        assert chinese["task_multi_label"] in tab.texts("#facts dd")
        scores = shown_scores(tab)
        tab.click("#language")
        assert tab.evaluate("document.documentElement.lang") == "en"
        assert (tab.text("#ask"), tab.text("#language")) == (english["ask"], "中文")
        assert tab.evaluate("byId('field-text').value") == TEXT
        assert shown_scores(tab) == scores
        rest = re.sub(r"中文|" + re.escape(TEXT), "", tab.text("body"))
        assert not re.search("[\u4e00-\u9fff]", rest)


CONTRASTS = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [red, green, blue] = channels(colour).slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return channels(colour)[3] === 0 ? ground(one.parentElement) : colour;
  };
  const written = Array.from(document.querySelectorAll("body *")).filter((one) =>
    one.checkVisibility() && Array.from(one.childNodes).some((node) => node.nodeType === 3 && node.data.trim()));
  return written.map((one) => {
    const [front, back] = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
    return [(front + 0.05) / (back + 0.05), one.textContent.slice(0, 40)];
  });
})()"""


@pytest.mark.real
@of_task("token_classification")
def test_light_and_dark_have_contrast_everywhere(tab: Tab) -> None:
    from PIL import Image

    painted = {}
    for scheme in ("light", "dark"):
        tab.prefer(scheme)
        ask(tab, text=TEXT)
        contrasts = tab.evaluate(CONTRASTS)
        assert len(contrasts) > 20
        assert min(contrasts)[0] >= 4.5, (scheme, min(contrasts))
        painted[scheme] = Image.open(io.BytesIO(tab.screenshot())).convert("L").histogram()
        ask(tab, text="")
        assert min(tab.evaluate(CONTRASTS))[0] >= 4.5
    # most of the picture is the background
    assert sum(painted["light"][200:]) > 0.8 * sum(painted["light"])
    assert sum(painted["dark"][:60]) > 0.8 * sum(painted["dark"])


@pytest.mark.real
@of_task("question_answering")
def test_it_fits_a_narrow_screen(tab: Tab) -> None:
    tab.resize(320, 640)
    ask(tab, question="Where is my card?", context=TEXT + " " + "long" * 60)
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate("window.innerWidth") == 320


@pytest.mark.real
@of_task("single_label")
def test_every_control_has_a_name_and_is_reached_by_the_keyboard(tab: Tab) -> None:
    ask(tab, text="lost")
    tab.evaluate("byId('language').focus()")
    visited = []
    for _ in range(5):
        tab.press("Tab", 9)
        visited.append(tab.evaluate("document.activeElement.id || document.activeElement.dataset.word"))
    assert visited == ["field-text", "field-text_pair", "ask", "key", "certificate"]
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    controls = [one for one in nodes if one.get("role", {}).get("value") in {"textbox", "button", "link"}]
    assert len(controls) >= 4
    assert all(one["name"]["value"] for one in controls)
