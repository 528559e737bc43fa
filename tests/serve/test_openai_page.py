"""The gateway's page in a real browser: chat, sampling, live figures, keys; and nothing from other hosts."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest
from gateways import call, running_gateway, with_template

from hebbline.serve.openai.app import PAGE, PAGE_FILES
from hebbline.serve.openai.keys import add_key
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository, further_models
from hebbline.serve.triton.settings import Settings
from hebbline.serve.triton.wanted import write_wanted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, long_artifact):
    return with_template(long_artifact, tmp_path_factory.mktemp("page") / "artifact")


@pytest.fixture
def gateway(artifact, server):
    with running_gateway(artifact, server, model_name="tiny") as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser, gateway):
    with opened_page(browser, gateway) as opened:
        yield opened


@contextlib.contextmanager
def opened_page(browser, gateway):
    """The page, its errors, and every address that it asks."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    opened.wrong, opened.asked = [], []
    opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
    opened.on("console", lambda message: opened.wrong.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(gateway.url)
    try:
        yield opened
    finally:
        opened.close()


def wait_for(page, selector, text):
    """Wait for an element with such a text. (Playwright's own way to wait for a condition evaluates strings as code,
    which the page's security policy forbids.)"""
    page.locator(selector, has_text=re.compile(text, re.S)).wait_for()


def test_the_page_comes_from_this_host_alone(gateway):
    status, text, headers = call(gateway, "/")
    assert status == 200 and "default-src 'self'" in headers["Content-Security-Policy"]
    for name in PAGE_FILES.values():
        assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"^ *//.*$", "", (PAGE / name).read_text(), flags=re.M))
    for path in ("/page.css", "/page.js"):
        assert path.lstrip("/") in text and call(gateway, path)[0] == 200


def test_a_conversation(page, gateway, tmp_path):
    wait_for(page, "#model", "^tiny")
    page.fill("[name=temperature]", "0")
    page.fill("[name=max_tokens]", "20")
    page.fill("#prompt", "the quick brown")
    page.click("#send")
    wait_for(page, "#result", "20 out")
    answer = page.text_content("#messages li.assistant")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the quick brown"}], "temperature": 0}
    expected = call(gateway, "/v1/chat/completions", {**body, "max_tokens": 20, "top_p": 0.95})[1]
    assert answer == expected["choices"][0]["message"]["content"]
    page.fill("#prompt", "and")
    page.press("#prompt", "Enter")
    wait_for(page, "#messages li.assistant:not(.open) >> nth=1", "")
    wait_for(page, "#figure-speed", "[1-9]")
    wait_for(page, "#figure-first", "[0-9] ms")
    screenshot = Path(os.environ.get("HEBBLINE_SCREENSHOT", tmp_path / "page.png"))
    page.screenshot(path=screenshot)
    assert screenshot.stat().st_size > 10_000
    assert page.wrong == [] and all(url.startswith(gateway.url) or url == "data:," for url in page.asked)


@pytest.fixture(scope="module")
def several(tmp_path_factory, artifact, tiny_artifact):
    """A server with two models: the second has no chat template, and a shorter context."""
    directory = tmp_path_factory.mktemp("several")
    fill_repository(artifact, directory / "repository", Settings(slots=2, threads=1), further={"small": tiny_artifact})
    with TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1) as running:
        running.wait_ready()
        yield running, directory / "repository"


def said(page, number):
    """What a finished answer says, without the name of its model."""
    answer = page.locator("#messages li.assistant:not(.open)").nth(number)
    answer.wait_for()
    return answer.locator(".by").text_content(), answer.text_content().removeprefix(
        answer.locator(".by").text_content()
    )


def test_one_of_several_models_is_chosen(browser, artifact, several, tmp_path):
    server, repository = several
    with (
        running_gateway(artifact, server, model_name="large", further=lambda: further_models(repository)) as gateway,
        opened_page(browser, gateway) as page,
    ):
        wait_for(page, "#context", "4096")
        assert page.locator("#model option").all_text_contents() == ["large", "small"]
        page.fill("[name=temperature]", "0")
        page.fill("[name=max_tokens]", "20")
        page.fill("#prompt", "the quick brown")
        page.press("#prompt", "Enter")
        assert said(page, 0)[0] == "large"
        wait_for(page, "#figure-speed", "[1-9]")
        page.select_option("#model", "small")
        wait_for(page, "#context", "128")
        wait_for(page, "#live-model", "^small$")
        wait_for(page, "#figure-speed", "^0.0$")
        page.fill("#prompt", "the quick brown")
        page.press("#prompt", "Enter")
        body = {"model": "small", "prompt": "the quick brown", "temperature": 0, "max_tokens": 20, "top_p": 0.95}
        expected = call(gateway, "/v1/completions", body)[1]["choices"][0]["text"]
        assert said(page, 1) == ("small", "the quick brown" + expected)
        wait_for(page, "#figure-speed", "[1-9]")
        wait_for(page, "#figure-first", "[0-9] ms")
        page.screenshot(path=os.environ.get("HEBBLINE_SCREENSHOT_SEVERAL", tmp_path / "several.png"))
        assert page.wrong == []
        write_wanted(repository, [])
        wait_for(page, "#context", "4096")
        assert page.locator("#model option").all_text_contents() == ["large"] and page.is_disabled("#model")


def test_figures_are_of_a_model_that_there_is(gateway):
    status, answer, _ = call(gateway, "/figures?model=other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert call(gateway, "/figures")[1].keys() == call(gateway, "/figures?model=tiny")[1].keys()


def test_stop_ends_an_answer(page):
    page.fill("[name=max_tokens]", "4000")
    page.fill("#prompt", "the quick")
    page.click("#send")
    wait_for(page, "#messages li.assistant", ".{20}")
    page.click("#stop")
    page.wait_for_selector("#stop[disabled]")
    assert page.query_selector("#messages li.error") is None
    page.click("#clear")
    assert page.query_selector("#messages li") is None


def test_what_the_server_refuses_is_shown(page):
    page.fill("[name=max_tokens]", "100000")
    page.fill("#prompt", "the quick")
    page.click("#send")
    page.wait_for_selector("#messages li.error")
    assert "maximum context length" in page.text_content("#messages li.error")


def test_a_key_opens_the_page_and_text_is_never_markup(browser, artifact, server, tmp_path):
    key = add_key(tmp_path / "keys.yaml", "alice")
    with running_gateway(artifact, server, model_name="tiny", api_keys=tmp_path / "keys.yaml") as gateway:
        page = browser.new_page()
        page.goto(gateway.url)
        wait_for(page, "#state", "API key is needed")
        page.fill("#key", key)
        page.press("#key", "Tab")
        wait_for(page, "#model", "^tiny")
        page.fill("#prompt", "<img src=x onerror=document.title='markup'>")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#messages li.assistant:not(.open)")
        assert page.query_selector("#messages img") is None and page.title() == "hebbline"
        page.close()
