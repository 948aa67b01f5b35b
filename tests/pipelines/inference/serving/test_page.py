"""The page in a browser; skipped where there is no Chromium."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipelines.inference.serving.page import page_responses
from tests.pipelines.inference.serving.builders import Server
from tests.toy import tone

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
SIZES = {"wide": (1200, 900), "narrow": (400, 800)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser whose microphone plays a tone for ever."""
    sound = tmp_path_factory.mktemp("microphone") / "tone.wav"
    soundfile.write(sound, tone(4.0, hertz=700.0), 48_000, subtype="PCM_16")
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, f"--use-file-for-fake-audio-capture={sound}"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page as it opens by its printed address; what it asks of others, and errors of its script, fail the test."""
    width, height = SIZES[getattr(request, "param", "wide")]
    context = browser.new_context(viewport={"width": width, "height": height})
    opened = context.new_page()
    asked, wrong = [], []
    opened.on("request", lambda one: asked.append(one.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    opened.goto(f"{server.address}/#token={server.token}")
    expect(opened.locator("#run option")).to_have_count(2)
    yield opened
    assert all(url.startswith((server.address, f"blob:{server.address}")) for url in asked)
    refusals = [text for text in wrong if "Failed to load resource" in text]
    assert wrong == refusals
    context.close()


def answer_of(page: Page, number: int = 0) -> tuple[str, str]:
    """Wait for an answer, the newest first, and return it and what is told about it."""
    item = page.locator("#answers li").nth(number)
    expect(item).not_to_have_class("writing", timeout=20_000)
    return item.locator("p").inner_text(), item.locator("small").inner_text()


@needs_browser
@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_a_file_is_shown_and_asked_about_twice_of_two_runs(page: Page, alone, recordings: list[Path]) -> None:
    page.set_input_files("#file", recordings[5])
    expect(page.locator("#about")).to_have_text(
        "tone 5.wav: 2.5 s, of which this run hears the first 2.0 s", timeout=10_000
    )
    expect(page.get_by_role("img", name="Wave of tone 5.wav, 2.5 s")).to_be_visible()
    assert colours_of(page, "#wave") > 2 and colours_of(page, "#spectrum") > 50
    for number, name in enumerate(("unbroken", "other")):
        page.get_by_label("Run").select_option(name)
        page.get_by_role("textbox", name="Question").fill(f"Is it high or low, {number}?")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#answers li")).to_have_count(number + 1)
        expected = alone[name].answer(recordings[5], f"Is it high or low, {number}?", max_new_tokens=40)
        text, about = answer_of(page)
        assert text == expected.text
        assert f"{name}, tone 5.wav; " in about and f"; heard 2.0 s of 2.5 s; {expected.num_tokens} tokens" in about
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def colours_of(page: Page, canvas: str) -> int:
    return page.evaluate(
        """selector => {
            const canvas = document.querySelector(selector);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(data.buffer)).size;
        }""",
        canvas,
    )


@needs_browser
def test_a_recording_of_the_microphone_is_asked_about_by_keys_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Tab")
    record = page.locator("#record")
    expect(record).to_be_focused()
    page.keyboard.press("Enter")
    expect(record).to_have_text("Stop (1 s)", timeout=10_000)
    expect(record).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text(re.compile(r"recording\.wav: [12]\.\d s, "), timeout=10_000)
    assert page.evaluate("Math.max(...sound.samples)") > 0.1  # the tone, not silence
    page.locator("#question").press("Enter")
    text, about = answer_of(page)
    assert text and re.search(r"recording\.wav; .*heard [12]\.\d s of [12]\.\d s", about)
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false")


@needs_browser
def test_an_example_of_the_cache_brings_its_sound_and_its_question(page: Page, server: Server, alone, corpus) -> None:
    first = server.app.examples.offered[0]
    page.get_by_label("Example from the cache").select_option(first.clip_id)
    expect(page.locator("#question")).to_have_value(first.question)
    expect(page.locator("#about")).to_contain_text("all of which this run hears")
    page.get_by_role("button", name="Ask").click()
    recording = Path(corpus[0]).parent / "audio" / first.recordings[0]
    assert answer_of(page)[0] == alone["unbroken"].answer(recording, first.question, max_new_tokens=40).text


@needs_browser
def test_what_the_server_refuses_is_said_and_the_page_goes_on(page: Page, recordings, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_text("no sound")
    page.set_input_files("#file", tmp_path / "x.wav")
    expect(page.locator("#about")).to_contain_text("this browser cannot show it")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("audio 1: ")
    page.set_input_files("#file", recordings[0])
    page.get_by_role("button", name="Ask").click()
    assert answer_of(page)[0]


@needs_browser
def test_a_token_that_is_not_known_is_asked_for_and_leaves_the_address(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.goto(f"{server.address}/#token=wrong")
    field = page.get_by_label("Token")
    expect(field).to_be_visible()
    assert page.url == f"{server.address}/"
    field.fill(server.token)
    field.press("Enter")
    expect(page.locator("#run option")).to_have_count(2)
    expect(field).to_be_hidden()
    page.close()


def test_the_page_names_no_other_address_and_has_no_script_in_it() -> None:
    pages = {path: response.body.decode() for path, response in page_responses().items()}
    assert set(pages) == {"/", "/talk.js"}
    assert not re.search(r"https?://|//\w+\.\w", "".join(pages.values()))
    assert re.findall(r"<script[^>]*>", pages["/"]) == ['<script src="talk.js">'] and "onclick" not in pages["/"]
    for response in page_responses().values():
        assert "default-src 'none'" in response.headers["content-security-policy"]
