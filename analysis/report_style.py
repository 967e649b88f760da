"""The style sheet of a report: system fonts, a reading measure for text, the page's width for the rest."""

STYLE = """
:root { --ink: #1f2430; --soft: #5a6274; --rule: #dfe3ea; --tint: #f6f8fb; --accent: #0b5c8e; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  line-height: 1.55; font-size: 16px;
  font-family: Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 16px; letter-spacing: -0.01em; }
h2 { font-size: 22px; line-height: 1.3; margin: 56px 0 12px; padding-top: 20px;
  border-top: 1px solid var(--rule); }
h4 { font-size: 13px; margin: 0 0 8px; color: var(--soft); font-weight: 600; }
p { max-width: 75ch; margin: 0 0 14px; }
a { color: var(--accent); }
code { font: 0.9em/1.4 Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--tint); padding: 1px 4px; border-radius: 3px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 10px 24px; margin: 0;
  padding: 16px 18px; background: var(--tint); border-radius: 6px; }
dt { font-size: 13px; color: var(--soft); }
dd { margin: 0; font-size: 14px; overflow-wrap: anywhere; }
nav { margin: 20px 0 0; }
nav ol { margin: 0; padding-left: 22px; columns: 2; font-size: 15px; }
.scroll { overflow-x: auto; margin: 18px 0 24px; }
table { border-collapse: collapse; font-size: 14px; min-width: 40%; }
caption { text-align: left; font-weight: 600; padding-bottom: 8px; }
th { text-align: left; vertical-align: bottom; font-weight: 600; font-size: 13px; color: var(--soft);
  border-bottom: 1.5px solid var(--ink); padding: 6px 14px 6px 0; }
td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td:last-child, th:last-child { padding-right: 0; }
tbody tr.group:not(:first-child) td { border-top: 1px solid #9aa3b2; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.interval { color: var(--soft); font-size: 13px; }
figure { margin: 22px 0 30px; }
figcaption { color: var(--soft); font-size: 14px; max-width: 85ch; margin-top: 4px; }
.note { color: var(--soft); font-size: 14px; }
.texts { margin: 18px 0 26px; border: 1px solid var(--rule); border-radius: 6px; overflow: hidden;
  break-inside: avoid; }
.prompt { max-width: none; margin: 0; padding: 12px 16px; background: var(--tint); font-weight: 600;
  font-size: 15px; white-space: pre-wrap; border-bottom: 1px solid var(--rule); }
.columns { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.columns > div { padding: 12px 16px; border-left: 1px solid var(--rule); }
.columns > div:first-child { border-left: 0; }
.response { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; margin: 0; }
.empty { color: var(--soft); font-style: italic; font-size: 14px; margin: 0; }
.yes, .no, .score { float: right; font-weight: 600; }
.yes { color: #00684a; }
.no { color: #a33c00; }
@media (max-width: 760px) {
  .columns { grid-template-columns: 1fr; }
  .columns > div { border-left: 0; border-top: 1px solid var(--rule); }
  .columns > div:first-child { border-top: 0; }
  nav ol { columns: 1; }
}
@media print {
  main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
