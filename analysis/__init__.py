"""Analysis of steering results: tables in, choices and pictures out.

    sweep              run a grid of candidates -> DataFrame
    layer_selection    decision rules on that DataFrame
    confirmation       the chosen setting on test prompts, against its controls
    choice_sweep       a grid of steerings on multiple-choice questions -> DataFrame
    choice_selection   which K (or layer) and strength, confirmed, with the optimism of choosing on the test set
    pairs_curve        accuracy against the number of contrastive pairs
    geometry           cosines, projections, logit lens and stability of directions
    figures            plotly figures from DataFrames and arrays
    report             one self-contained HTML file
    statistics         bootstrap intervals, paired bootstrap, McNemar's test

Every module takes and returns pandas DataFrames (one row per candidate and prompt) or plain arrays, and
none of them knows a method. Import the one that is needed: ``from analysis.layer_selection import
choose``.
"""
