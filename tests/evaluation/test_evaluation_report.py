"""The report: every panel has something to show, or says why not; it is one safe, self-contained page."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation.made_run import HOSTILE, PROMPTS, MadeRun, made_run

from kd_runtime.evaluation.panels.answers import answers_panel
from kd_runtime.evaluation.report import panels, render_report
from kd_runtime.evaluation.sources import Sources

PANELS = [
    "summary",
    "scores",
    "loss",
    "rate",
    "mass",
    "positions",
    "answers",
    "endings",
    "lineage",
    "rows",
    "costs",
    "settings",
]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses tags that are closed out of order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rendered(run: MadeRun) -> str:
    return render_report(run.plan, run.manifests, run.store, run.cache)


def sources(run: MadeRun) -> Sources:
    return Sources(run.plan, run.manifests, run.store, run.cache)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return made_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: MadeRun) -> Page:
    return Page(rendered(run))


def test_a_finished_run_fills_every_panel(run: MadeRun):
    shown = panels(sources(run))
    assert [panel.id for panel in shown] == PANELS
    assert [panel.missing for panel in shown] == [""] * len(PANELS)


def test_the_page_is_well_formed_with_unique_ids_and_links_that_lead_somewhere(page: Page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.named("a")} <= {f"#{i}" for i in ids}


def test_nothing_is_loaded_from_anywhere(page: Page):
    assert not page.named("script") + page.named("link") + page.named("img") + page.named("iframe")
    loading = [
        v
        for _, attributes in page.tags
        for k, v in attributes.items()
        if k in ("src", "href", "action", "srcset", "xlink:href")
    ]
    assert all(value and value.startswith("#") for value in loading)
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_no_style_names_an_address(run: MadeRun):
    style = re.search(r"<style>(.*?)</style>", rendered(run), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_no_attribute_is_a_script(page: Page):
    assert not [k for _, attributes in page.tags for k in attributes if k.startswith("on")]


def test_hostile_answers_are_text(run: MadeRun, page: Page):
    assert HOSTILE not in rendered(run)
    assert re.sub(r"\s+", " ", HOSTILE) in page.text()


def test_every_picture_has_a_text_and_every_table_a_caption_and_heads(run: MadeRun, page: Page):
    pictures = [a for a in page.named("svg") if a.get("aria-hidden") != "true"]
    assert len(pictures) >= 9
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)
    assert len(page.named("caption")) == len(page.named("table")) >= 6
    assert all(a.get("scope") in ("col", "row") for a in page.named("th"))


def test_headings_go_down_one_level_at_a_time(page: Page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_it_is_responsive_dark_and_printable(run: MadeRun):
    text = rendered(run)
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 480px"):
        assert rule in text


def test_the_summary_says_what_training_did(run: MadeRun, page: Page):
    document = json.loads(sources(run).text(run.manifests["exam"], "evaluation.json"))
    kl = {s["who"]: s["value"] for s in document["scores"] if s["score"] == "KL"}
    assert f"from {kl['baseline']:#.3g} to {kl['student']:#.3g} nats" in page.text()
    assert page.text().count("Passed") == page.text().count("Unmet") == 2


def test_kl_names_the_profile_of_its_logits(page: Page):
    assert "KL is over the teacher's 32 most likely tokens and one bucket for the rest (profile Exact)." in page.text()


def test_gates_are_judged_as_the_plan_asks_them_now(run: MadeRun):
    document = run.plan.model_dump(mode="json", by_alias=True, exclude_none=True)
    for stage in document["spec"]["stages"]:
        for gate in stage.get("evaluate", {}).get("gates", ()):
            gate["value"] = 0.01
    eased = type(run.plan).model_validate(document)
    text = render_report(eased, run.manifests, run.store, run.cache)
    assert "Unmet" not in text
    assert "Passed" in text


def test_kd_and_ce_are_apart(page: Page):
    text = page.text()
    for title in ("distillation loss (KD)", "cross-entropy (CE)", "learning rate", "head mass of teacher and student"):
        assert title in text


def test_answers_of_all_three_stand_side_by_side(page: Page):
    cells = [a["class"] for a in page.named("div") if (a.get("class") or "").startswith("cell ")]
    assert cells == ["cell c-teacher", "cell c-baseline", "cell c-student"] * PROMPTS


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "(empty)"),
        ("\n\n \n", "(white space alone)"),
        ("a\n\n\n\nb\n\n", "a\n\nb"),
        ("  x", "  x"),
        ("y" * 4001, "y" * 4000),
    ],
)
def test_blank_stretches_of_answers_take_no_room(text: str, shown: str):
    cell = answers_panel(None, [made_answer(text)]).content["first"][0]["cells"][2]
    assert cell["text"].removesuffix("… (1 more characters)") == shown


def made_answer(text: str) -> dict:
    said = {"text": text, "ended": False, "tokens": 1, "exactMatch": None, "repeat": {"length": 0}}
    return {"messages": [{"role": "user", "content": "?"}], "student": said}


def test_rows_lost_have_their_reasons_and_places(page: Page):
    text = page.text()
    assert "BadJSON" in text
    assert "instructions.jsonl:17: Expecting ',' delimiter at column 41" in text
    assert "equal to an earlier row: stored once" in text
    assert "answer cut off at maxTokens, left out of training" in text


def test_lineage_names_every_stage_with_key_and_content(run: MadeRun, page: Page):
    for name, manifest in run.manifests.items():
        assert f"key {manifest.key[:12]}" in page.text(), name
        assert manifest.content_digest[:12] in page.text()


def test_the_same_manifests_give_the_same_page(run: MadeRun):
    assert rendered(run) == rendered(run)


def test_a_run_under_way_says_of_each_panel_why_it_is_empty(tmp_path: Path):
    started = made_run(tmp_path, until="answers")
    missing = {panel.id: panel.missing for panel in panels(sources(started)) if panel.missing}
    assert set(missing) == {"summary", "scores", "loss", "rate", "mass", "positions", "answers", "endings"}
    assert missing["loss"] == "the train stage 'student' has no artifact in the store yet"
    assert missing["summary"] == "the evaluate stage 'exam' has no artifact in the store yet"
    text = Page(rendered(started)).text()
    assert text.count("Not available: ") == len(missing)
    assert "not made yet" in text


def test_a_run_without_any_artifact_renders_too(tmp_path: Path):
    run = made_run(tmp_path, until="dataset")
    text = Page(render_report(run.plan, {}, run.store, run.cache)).text()
    assert "no stage has an artifact in the store yet" in text
    assert "no stage that counts rows has an artifact" in text


def test_training_without_a_teacher_has_no_kd_curve_and_no_head_mass(tmp_path: Path):
    run = made_run(tmp_path, sft=True)
    missing = {panel.id: panel.missing for panel in panels(sources(run)) if panel.missing}
    assert missing == {
        "mass": "no train stage of this plan reads teacher logits",
        "positions": "the stage has no logits among its inputs",
    }
    text = Page(rendered(run)).text()
    assert "Not available: this stage trains without teacher logits" in text
    assert "Gates not judged: gate recoveredGap of KL: KL of the student was not measured" in text
