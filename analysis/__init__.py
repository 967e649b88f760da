"""Analysis of steering results: tables in, choices and pictures out.

    sweep              run a grid of candidates -> DataFrame
    layer_selection    decision rules on that DataFrame
    confirmation       the chosen setting on test prompts, against its controls
    choice_sweep       a grid of steerings on multiple-choice questions -> DataFrame
    choice_selection   which K (or layer) and strength, confirmed, with the optimism of choosing on the test set
    pairs_curve        accuracy against the number of contrastive pairs
    key_elements       heads, neurons or hidden units ranked by several criteria; their agreement and stability
    patching           attribution and activation patching: which elements carry the answer
    element_study      key elements of one task in one call, from ranking them to steering on test questions
    geometry           cosines, projections and logit lens of directions
    stability          directions from halves of the pairs, and beside random ones
    figures            plotly figures from DataFrames and arrays
    report             one self-contained HTML file
    statistics         bootstrap intervals, paired bootstrap, McNemar's test, correlations

Tables are pandas DataFrames with one row per candidate and prompt, setting and question, or element. Choosing, drawing
and counting know no method; what fits one (`key_elements`, `patching`, `element_study`) names it. Import the module
that is needed: ``from analysis.layer_selection import choose``.
"""
