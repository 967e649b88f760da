"""What a study of transports shows: a short table for a terminal, and its section of a report."""

from __future__ import annotations

import pandas as pd

from analysis import figures
from analysis.report import Report
from analysis.transport_choice import why_unsteered
from analysis.transport_study import TransportStudy
from analysis.transport_units import top_units, unit_samples, unit_table


def short_table(study: TransportStudy) -> pd.DataFrame:
    """The chosen settings on the test prompts, effect beside damage, for a terminal."""
    lines, seen = [], False
    for row in study.confirmed.itertuples():
        steered = row.condition != "none"
        if not steered and seen:
            continue  # no steering is the same for every method
        seen = True
        lines.append(
            {
                "method": f"{row.method}{', random' * (row.condition == 'random')}" if steered else "none",
                "at": f"λ = {row.strength:g}, {row.support}" if steered else "",
                "success": f"{row.success:.2f} [{row.success_low:.2f}, {row.success_high:.2f}]",
                "perplexity": f"{row.perplexity:.1f}",
                "on neutral text": f"{row.text_perplexity:.0f} ({row.text_rise:+.1f})",
                "degenerate": f"{row.degenerate:.2f}",
            }
        )
    lines += [{"method": method, "at": "none chosen"} for method in study.transports if method not in study.chosen]
    return pd.DataFrame(lines).fillna("")


def transport_report(study: TransportStudy) -> Report:
    """A report of one study of transports and nothing else."""
    about = next(iter(study.transports.values()))
    return add_transport_to_report(Report(study.name, {"model": about.metadata.get("model", "")}), study)


def add_transport_to_report(report: Report, study: TransportStudy) -> Report:
    """The section of a study of transports."""
    size, sides = study.size, next(iter(study.transports.values())).metadata
    report.section(f"Activation transport: {study.name}")
    report.text(
        f"Maps at every site of `{size.sites}` carry the activations of {sides['n_source']} source texts to those of "
        f"{sides['n_target']} target texts, unit by unit; **λ** is how much of the way is gone. Strength and support "
        f"are chosen on {size.validation} validation prompts under the budget ({study.budget}), and reported on "
        f"{size.test} test prompts and other neutral texts, beside **random** shifts that move every site's mean as "
        "far."
    )
    report.table(_confirmed(study.confirmed), caption=f"{size.test} test prompts; 95 % bootstrap intervals over them.")
    for reason in why_unsteered(study.candidates, study.budget).values():
        report.text(f"{reason[0].upper()}{reason[1:]}.")
    report.figure(figures.strength_curves(study.candidates), "On validation prompts; a ring marks what was chosen.")
    unsteered = study.candidates.loc[study.candidates["condition"] == "none", "text_perplexity"].iloc[0]
    rise = study.budget.rise_from(float(unsteered))
    report.figure(figures.effect_perplexity(study.candidates, text_rise=rise), "On validation prompts.")
    steered = study.candidates[study.candidates["condition"] == "steered"]
    if steered.groupby("method")["support"].nunique().max() > 1:
        report.figure(figures.support_curve(study.candidates))
    if len(study.untouched):
        report.table(
            _untouched(study.untouched), caption="Share of the test prompts' (token, unit) values outside the support."
        )
    for method, fitted in study.transports.items():
        report.text(f"**{method}**").figure(figures.transport_cost(fitted.table()))
        report.figure(figures.std_scatter(unit_table(fitted)))
        report.figure(figures.unit_histograms(unit_samples(fitted, top_units(fitted, 6))))
    for method in study.chosen:
        rows = study.test[(study.test["method"] == method) & (study.test["seed"] <= study.test["seed"].clip(0).min())]
        report.text(f"**{method}**").texts(rows.drop(columns="method"), limit=3)
    return report


def _confirmed(table: pd.DataFrame) -> pd.DataFrame:
    """What fits beside each other on a page."""
    at = [f"{row.strength:g}, {row.support}" if row.condition != "none" else "" for row in table.itertuples()]
    intervals = [f"{name}{end}" for name in ("success", "difference") for end in ("", "_low", "_high")]
    shown = table[["method", "condition"]].assign(**{"λ, support": at}).join(table[intervals])
    shown = shown.join(table[["perplexity", "degenerate", "text_perplexity", "text_rise"]])
    return shown.rename(columns={"text_perplexity": "on neutral text", "text_rise": "rise there"})


def _untouched(table: pd.DataFrame) -> pd.DataFrame:
    """Over all sites of a method."""
    shares = ["untouched", "below", "above"]
    counts = table.assign(**{name: table[name] * table["values"] for name in shares})
    total = counts.groupby("method", sort=False)[["values", *shares]].sum()
    return total[shares].div(total["values"], axis=0).reset_index()
