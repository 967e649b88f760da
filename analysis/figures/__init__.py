"""Plotly figures from DataFrames and arrays, all in one look (see ``template``).

    layer_strength_map      success over layer and strength, the chosen candidate outlined
    success_fluency         what each candidate gains against what it costs
    confirmation_bars       conditions side by side on test prompts, with intervals
    length_distributions    lengths of the responses, by condition or by strength
    cosine_map              cosines between vectors or layers
    projection_strip        a prompt with each token on the colour of its value
    separation_by_layer     how well directions separate their classes, layer by layer
    element_map             the score of every head in every layer, the first K marked
    layer_distribution      over which layers the first K elements of each criterion spread
    criterion_agreement     overlap and rank correlation of every two criteria
    criterion_stability     the same between halves of the data, for each criterion
    patching_comparison     what attribution predicts of an element against what patching it does
    choice_map              accuracy over K (or layer) and strength, centred on no steering
    accuracy_by_pairs       accuracy after fitting on more and more pairs
    strength_curves         effect and damage of transports over the strength, with bands
    support_curve           the same over supports, from narrow to everywhere
    effect_perplexity       effect against what a transport costs on neutral text
    unit_histograms         source, target and transported samples of single units
    std_scatter             how wide each unit is on either side
    focus_radar             accuracy for each kind of focus instruction, a line for each split
    focus_bars              the same for methods side by side, with intervals
    focus_patching_curve    at which layer a focus instruction decides the answer
    focus_comparison_bars   prompts, vectors and both, model by model
    transport_cost          how far source and target are apart, by layer and kind of site

Each takes tables or arrays and returns a ``plotly.graph_objects.Figure``; nothing is drawn or written.
"""

from __future__ import annotations

from analysis.figures.choice_maps import accuracy_by_pairs, choice_map, patching_comparison
from analysis.figures.comparisons import confirmation_bars, length_distributions
from analysis.figures.elements import criterion_agreement, criterion_stability, element_map, layer_distribution
from analysis.figures.focus import focus_bars, focus_radar
from analysis.figures.focus_layers import focus_comparison_bars, focus_patching_curve
from analysis.figures.heatmaps import cosine_map, layer_strength_map
from analysis.figures.layers import separation_by_layer
from analysis.figures.tokens import projection_strip
from analysis.figures.tradeoff import success_fluency
from analysis.figures.transport import effect_perplexity, strength_curves, support_curve
from analysis.figures.transport_units import std_scatter, transport_cost, unit_histograms

__all__ = [
    "accuracy_by_pairs",
    "choice_map",
    "confirmation_bars",
    "cosine_map",
    "criterion_agreement",
    "criterion_stability",
    "effect_perplexity",
    "element_map",
    "focus_bars",
    "focus_comparison_bars",
    "focus_patching_curve",
    "focus_radar",
    "layer_distribution",
    "layer_strength_map",
    "length_distributions",
    "patching_comparison",
    "projection_strip",
    "separation_by_layer",
    "std_scatter",
    "strength_curves",
    "success_fluency",
    "support_curve",
    "transport_cost",
    "unit_histograms",
]
