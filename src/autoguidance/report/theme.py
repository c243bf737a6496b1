"""The page's look: one style sheet with light and dark colours, used by `page`.

It stands in the page itself, because a report is one file that must open without a network. Contrast of text is at
least 4.5 to 1 in both modes; the methods' colours are told apart by colour-blind readers and always accompany a
marker or a text. Tables that are wider than a phone scroll inside their own frame, so that the page does not.
"""

STYLE_SHEET = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --ink: #1c2430; --muted: #566070; --rule: #d9dee6; --tint: #fdf1e7;
  --link: #0b5cad; --code: #f0f2f5;
  --method-unguided: #5c6675; --method-cfg: #1f6fb5; --method-interval: #7a4fb5; --method-autoguidance: #c2410c;
  --method-other: #0f766e; --method-another: #a21caf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --surface: #1a2029; --ink: #e8ecf2; --muted: #a3adbb; --rule: #343d4a; --tint: #38261a;
    --link: #7db8f0; --code: #242c37;
    --method-unguided: #a3adbb; --method-cfg: #63aef0; --method-interval: #b795ea; --method-autoguidance: #ff8f4d;
    --method-other: #3fc1b0; --method-another: #e879f9;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
main, header.top, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header.top { padding-top: 36px; }
footer { padding-top: 8px; padding-bottom: 40px; color: var(--muted); font-size: 14px; }
.eyebrow { margin: 0; color: var(--muted); font-size: 14px; }
h1 {
  margin: 4px 0 8px; font-size: clamp(22px, 3.4vw, 32px); line-height: 1.25; letter-spacing: -0.01em; text-wrap:
  balance;
}
h2 { margin: 40px 0 12px; font-size: 21px; line-height: 1.3; }
h2.run { margin-top: 56px; padding-top: 24px; border-top: 2px solid var(--rule); font-size: 25px; }
h3 { margin: 36px 0 10px; font-size: 18px; }
p { margin: 0 0 12px; max-width: 76ch; }
p.lead { max-width: none; font-size: 17px; color: var(--muted); }
a { color: var(--link); }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin: 22px 0 8px;
  padding: 0; list-style: none;
}
.figures li {
  background: var(--surface); border: 1px solid var(--rule); border-top: 4px solid var(--key, var(--rule));
  border-radius: 8px; padding: 12px 16px;
}
.figures b { display: block; font-size: 28px; line-height: 1.25; font-variant-numeric: tabular-nums; font-weight: 650; }
.figures span { color: var(--muted); font-size: 14px; }
.frame { overflow-x: auto; background: var(--surface); border: 1px solid var(--rule); border-radius: 8px; }
.frame:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
caption span { display: inline-block; position: sticky; left: 16px; max-width: min(86ch, calc(100vw - 64px)); }
caption { text-align: left; padding: 12px 16px 8px; color: var(--muted); font-size: 14px; }
th, td {
  text-align: right; padding: 9px 11px; border-top: 1px solid var(--rule); vertical-align: top; white-space:
  nowrap;
}
thead th { border-top: 0; color: var(--muted); font-weight: 600; font-size: 13.5px; vertical-align: bottom; }
th:first-child, td.text, th.text { text-align: left; }
tbody th { font-weight: 600; }
td small { display: block; color: var(--muted); font-size: 13px; }
tr.best { background: var(--tint); }
.badge {
  display: inline-block; margin-left: 8px; padding: 0 8px; border-radius: 99px; background:
  var(--method-autoguidance); color: var(--surface); font-size: 12px; line-height: 20px;
}
.key {
  display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 2px; background: var(--key);
}
.plots {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 16px; align-items:
  start;
}
.plots + .frame { margin-top: 16px; }
.frame + p { margin-top: 12px; }
figure {
  margin: 0; background: var(--surface); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 14px
  10px;
}
figcaption { margin-top: 8px; color: var(--muted); font-size: 14px; }
svg.plot { display: block; width: 100%; height: auto; }
table.grid th, table.grid td { border-top: 0; padding: 3px 8px; vertical-align: middle; text-align: left; }
table.grid { width: auto; }
table.grid thead th { padding-bottom: 6px; font-size: 14px; color: var(--ink); }
table.grid thead small { display: block; color: var(--muted); font-weight: 400; font-size: 13px; }
table.grid tbody th {
  position: sticky; left: 0; background: var(--surface); font-weight: 400; color: var(--muted); font-size: 14px;
  max-width: 130px; overflow: hidden; text-overflow: ellipsis;
}
table.grid tr:last-child > * { padding-bottom: 14px; }
table.grid img { display: block; }
img.pixels { image-rendering: pixelated; }
table.record th { width: 1%; font-weight: 500; color: var(--muted); }
table.record td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
pre {
  margin: 0 0 14px; padding: 14px 16px; background: var(--code); border-radius: 8px; overflow-x: auto; font-size:
  14px; line-height: 1.5;
}
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
@media (max-width: 560px) {
  main, header.top, footer { padding-left: 14px; padding-right: 14px; }
  th, td { padding: 8px 8px; }
  table.grid th, table.grid td { padding: 3px 5px; }
  table.grid tbody th { max-width: 84px; font-size: 13px; }
  .figures { grid-template-columns: 1fr 1fr; }
  .figures b { font-size: 24px; }
}
@media print {
  body { background: #fff; }
  .frame { overflow: visible; }
  figure, .frame, .figures li { break-inside: avoid; }
}
"""
