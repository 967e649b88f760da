from __future__ import annotations

import math
from html.parser import HTMLParser

import pandas as pd
import plotly.graph_objects as go
import pytest

from analysis.report import Report
from analysis.report_tables import table_html


class Page(HTMLParser):
    """Tags, texts and everything that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        own = dict(attributes)
        if tag in ("script", "img", "iframe", "link", "source", "object"):
            self.fetched += [own[name] for name in ("src", "href", "data") if own.get(name)]

    def handle_data(self, data):
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.texts.append(data)


@pytest.fixture
def results(rows, table):
    return table(
        rows(8, [1, 0], condition="steered"),
        rows(-1, [0, 0]),
        rows(-1, [1, 1], condition="text", prompts=["question 0 Use bullets.", "question 1 Use bullets."]),
    )


@pytest.fixture
def figure():
    return go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><b>"))


def test_the_page_is_whole_and_fetches_nothing(results, figure, tmp_path):
    report = Report("Title", {"model": "tiny"}).section("One").text("Hello").figure(figure).texts(results)
    path = report.table(pd.DataFrame({"a": [1]})).save(tmp_path / "deep" / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("h1") == 1
    assert "@import" not in path.read_text(encoding="utf-8")


def test_plotly_is_inside_once_however_many_figures_and_not_without_one(figure):
    one, three = Report("x").figure(figure), Report("x").figure(figure).figure(figure).figure(figure)
    bundle = len(one.html())
    assert bundle > 1_000_000
    assert len(three.html()) - bundle < 100_000
    assert len(Report("x").text("only text").html()) < 20_000


def test_pieces_stand_in_the_order_they_were_added_and_sections_are_linked():
    html = Report("x").section("First").text("alpha").section("Second").text("beta").html()
    assert html.index("alpha") < html.index(">Second</h2>") < html.index("beta")
    assert '<a href="#section-2">Second</a>' in html
    assert 'id="section-2"' in html


def test_nothing_that_is_given_becomes_markup(results, figure):
    bad = "<script>alert(1)</script>"
    results.loc[:, "response"] = bad
    results.loc[:, "prompt"] = bad
    report = Report(bad, {bad: bad}).section(bad).text(bad).figure(figure, caption=bad)
    report.table(pd.DataFrame({bad: [bad]}, index=pd.Index([bad], name=bad + "2")), caption=bad).texts(results)
    html = report.html()
    assert bad not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 12
    assert "</script><b>" not in html  # not from inside a figure either


def test_text_knows_paragraphs_bold_and_code():
    html = Report("x").text("one **two** `three < 4`\n\nfive").html()
    assert "<p>one <strong>two</strong> <code>three &lt; 4</code></p>\n<p>five</p>" in html


def test_texts_stand_side_by_side_with_the_prompt_and_whether_each_was_followed(results):
    html = Report("x").texts(results).html()
    first, second = html.split('<section class="texts">')[1:]
    assert ">question 0<" in first
    assert "Use bullets" not in first  # the prompt is the one without the instruction
    order = [first.index(f"<h4>{name}") for name in ("no steering", "steered", "instruction in text")]
    assert order == sorted(order)
    assert first.count("✗ not followed") == 1
    assert first.count("✓ followed") == 2
    assert second.count("✓ followed") == 1


def test_texts_can_be_chosen_and_limited(results):
    html = Report("x").texts(results, conditions=("text", "none"), limit=1).html()
    assert html.count('<section class="texts">') == 1
    assert html.index("<h4>instruction in text") < html.index("<h4>no steering")
    assert "<h4>steered" not in html
    assert Report("x").texts(results, limit=None).html().count('<section class="texts">') == 2


def test_empty_graded_and_missing_responses_are_said(results):
    results = results.astype({"success": float})
    results.loc[0, "response"] = "  "
    results.loc[1, "success"] = 0.25
    html = Report("x").texts(results.drop(index=2)).html()
    assert "empty response" in html
    assert "0.25" in html
    assert "not run" in html


def test_chat_prompts_are_shown_as_their_text(results):
    results["prompt"] = [[{"role": "user", "content": f"message {i}"}] for i in range(len(results))]
    assert ">message 2<" in Report("x").texts(results).html()


def test_texts_refuse_what_they_cannot_show(results):
    with pytest.raises(ValueError, match=r"no rows of conditions \['random'\]"):
        Report("x").texts(results, conditions=("none", "random"))
    with pytest.raises(ValueError, match="several responses for one prompt and condition"):
        Report("x").texts(pd.concat([results, results]))
    with pytest.raises(ValueError, match=r"lacks the columns \['response'\]"):
        Report("x").texts(results.drop(columns="response"))


def test_saving_replaces_the_old_file_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    Report("old").save(path)
    monkeypatch.setattr("analysis.report.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Report("new").save(path)
    assert "<h1>old</h1>" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def fail(*_):
    raise OSError("disk full")


def test_an_interval_is_shown_behind_its_value():
    table = pd.DataFrame({"success": [0.5, 1.0], "success_low": [0.25, 1.0], "success_high": [0.75, 1.0]})
    html = table_html(table)
    assert '0.50 <span class="interval">[0.25, 0.75]</span>' in html
    assert html.count("<th") == 2  # <thead> and one column
    assert "success low" not in html


def cells(table, **options):
    return [part.split("</td>")[0].split(">", 1)[1] for part in table_html(table, **options).split("<td")[1:]]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0833, 0.25, 1.0], ["0.08", "0.25", "1.00"]),
        ([9.321, 14.5], ["9.3", "14.5"]),
        ([1234.5, 2.25], ["1234", "2"]),
        ([-1, 24], ["−1", "24"]),
        ([0.0, 4.0], ["0", "4"]),
        ([0.5, 0.0001], ["0.50", "1.0e−4"]),
        ([0.004, 0.001], ["0.00400", "0.00100"]),
        ([0.5, math.nan, math.inf], ["0.50", "–", "inf"]),
        ([True, False], ["yes", "no"]),
        (["a", None], ["a", "–"]),
    ],
)
def test_a_column_shares_its_precision(values, shown):
    assert cells(pd.DataFrame({"x": values})) == shown


def test_small_p_values_are_cut_and_not_rounded_to_zero():
    assert cells(pd.DataFrame({"p_value": [0.0117, 1e-7, math.nan]})) == ["0.012", "&lt;0.001", "–"]


def test_a_repeated_name_in_the_first_column_is_shown_once():
    table = pd.DataFrame({"instruction": ["json", "json", "bullets"], "n": [1, 2, 3]})
    assert cells(table) == ["json", "1", "", "2", "bullets", "3"]
    assert cells(table.rename(columns={"instruction": "n2"})[["n", "n2"]]) == ["1", "json", "2", "json", "3", "bullets"]


def test_an_index_with_meaning_is_shown_and_a_row_number_is_not():
    named = pd.DataFrame({"a": [1]}, index=["first"])
    assert cells(named) == ["first", "1"]
    assert cells(pd.DataFrame({"a": [5, 6, 7]})[1:]) == ["6", "7"]
    assert cells(pd.DataFrame({"a": [5]}, index=pd.Index([3], name="layer"))) == ["3", "5"]


def test_wrong_tables_are_refused():
    with pytest.raises(TypeError, match="pandas DataFrame, got list"):
        table_html([1])
    with pytest.raises(ValueError, match="must be distinct"):
        table_html(pd.DataFrame({"a": [1]}, index=pd.Index([2], name="a")))
    with pytest.raises(ValueError, match="must be distinct"):
        table_html(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(ValueError, match="digits must be at least 1"):
        table_html(pd.DataFrame(), digits=0)
