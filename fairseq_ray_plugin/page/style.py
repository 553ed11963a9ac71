"""How the page looks: light and dark, and without colours by shapes and patterns."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #fff; --card: #f6f7f9; --text: #1b1f24; --dim: #5b6470; --rule: #d5dae1;
  --train: #2b6cb0; --start: #9aa5b1; --stall: #d9822b; --fault: #b42318; --good: #1a7f4b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171b; --card: #1d2127; --text: #e6e9ee; --dim: #9aa4b0; --rule: #343b45;
    --train: #63a4e4; --start: #66707c; --stall: #e9a25b; --fault: #ff7b72; --good: #4cc38a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 28px 20px 60px; max-width: 1080px; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { font-size: 20px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 34px 0 8px; }
p { margin: 4px 0; }
.dim { color: var(--dim); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 0; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 14px; flex: 1 1 140px; }
.tile b { display: block; font-size: 21px; font-weight: 600; line-height: 1.25; }
.tile span { color: var(--dim); font-size: 13px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font-size: 12px; }
svg .label { fill: var(--text); }
.axis { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { stroke: var(--train); stroke-width: 1.8; fill: none; stroke-linejoin: round; }
.line2 { stroke: var(--dim); stroke-width: 1.4; fill: none; stroke-dasharray: 5 4; }
.area { fill: var(--train); opacity: .16; }
.restart { stroke: var(--stall); stroke-width: 1; stroke-dasharray: 2 3; }
.restarts { stroke: var(--stall); stroke-width: 1; }
.train { fill: var(--train); }
.start { fill: url(#dots); }
.load { fill: url(#thin); }
.stall { fill: url(#hatch); }
.idle { fill: none; stroke: var(--start); stroke-width: .7; }
.bar { fill: var(--stall); } .bar.good { fill: var(--good); }
.fault { stroke: var(--fault); stroke-width: 2; fill: none; }
.planned { fill: var(--back); stroke: var(--text); stroke-width: 1.4; }
.check { stroke: var(--good); stroke-width: 1.5; }
.notice { fill: var(--stall); stroke: none; }
.end { fill: var(--text); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--dim); }
.legend svg { display: inline-block; width: 22px; height: 13px; vertical-align: -2px; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th { text-align: left; color: var(--dim); font-weight: 500; }
th, td { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
details { border-bottom: 1px solid var(--rule); padding: 5px 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre {
  background: var(--card); border-radius: 6px; padding: 10px; overflow-x: auto;
  font-size: 12px; line-height: 1.4;
}
@media print { :root { --card: #fff; } details > pre { white-space: pre-wrap; } }
"""

PATTERNS = """<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>
<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse"
 patternTransform="rotate(45)"><path d="M0 0h5v5h-5z" fill="var(--stall)" opacity=".3"/>
<path d="M0 0v5" stroke="var(--stall)" stroke-width="3"/></pattern>
<pattern id="thin" width="4" height="4" patternUnits="userSpaceOnUse"
 patternTransform="rotate(-45)"><path d="M0 0v4" stroke="var(--train)" stroke-width="2"/></pattern>
<pattern id="dots" width="5" height="5" patternUnits="userSpaceOnUse">
<circle cx="2.5" cy="2.5" r="1.2" fill="var(--start)"/></pattern>
<path id="fault" class="fault" d="M-4-4l8 8m0-8l-8 8"/>
<path id="planned" class="planned" d="M0-5l5 5-5 5-5-5z"/>
<path id="check" class="check" d="M0 0v8"/>
<path id="notice" class="notice" d="M-5 4h10l-5-9z"/>
<path id="end" class="end" d="M-4-4h8v8h-8z"/>
</defs></svg>"""
"""What the pictures share: patterns, and a shape for each kind of event."""
