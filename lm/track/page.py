"""The report's style and script; both stand in the page itself, which loads nothing."""

STYLE = """
:root { --bg:#fbfbfa; --card:#fff; --ink:#1c1d20; --soft:#63676f; --rule:#e3e4e6; --line:#d9dadd;
  --c0:#2463c9; --c1:#c2500a; --c2:#1c7f55; --c3:#9a3fa8; --c4:#8a6a00; --c5:#0b7a8f; }
@media (prefers-color-scheme: dark) { :root { --bg:#141518; --card:#1c1e22; --ink:#e9eaec;
  --soft:#a0a5ad; --rule:#2e3137; --line:#33373e;
  --c0:#79a8ff; --c1:#ff9d5c; --c2:#5fcf9d; --c3:#dd92ea; --c4:#dcb93f; --c5:#5cc9de; } }
* { box-sizing:border-box; }
body { margin:0 auto; padding:1.5rem clamp(.8rem,3vw,2.5rem) 4rem; max-width:76rem;
  background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,sans-serif;
  color-scheme:light dark; }
h1 { font-size:1.6rem; line-height:1.2; margin:.3rem 0; overflow-wrap:anywhere; }
h2 { font-size:1.1rem; margin:2.2rem 0 .7rem; }
.sub, .none, figcaption span, .xname { color:var(--soft); }
.tiles { display:grid; grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr)); gap:.7rem;
  margin:1.2rem 0; padding:0; }
.tiles div { background:var(--card); border:1px solid var(--rule); border-radius:8px;
  padding:.65rem .8rem; }
.tiles dt { color:var(--soft); font-size:.82rem; }
.tiles dd { margin:0; font-size:1.3rem; font-weight:600; font-variant-numeric:tabular-nums; }
.tiles small { display:block; font-size:.78rem; font-weight:400; color:var(--soft); }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));
  gap:1rem; }
figure { margin:0; padding:.8rem .9rem .5rem; background:var(--card);
  border:1px solid var(--rule); border-radius:8px; min-width:0; }
figure.wide, .charts > figure:first-child { grid-column:1/-1; }
figcaption { display:flex; flex-wrap:wrap; gap:.1rem .6rem; align-items:baseline;
  margin-bottom:.7rem; }
.legend { display:flex; flex-wrap:wrap; gap:.1rem .9rem; list-style:none; margin:0 0 0 auto;
  padding:0; font-size:.85rem; }
.legend i { display:inline-block; width:1rem; height:3px; border-radius:2px;
  vertical-align:middle; margin-right:.4rem; }
.chart { display:grid; grid-template-columns:3.2rem 1fr; font-size:.78rem; color:var(--soft);
  font-variant-numeric:tabular-nums; }
.ylabels, .plot { position:relative; height:13rem; }
.charts > figure:first-child .ylabels, .charts > figure:first-child .plot { height:20rem; }
.plot { border-bottom:1px solid var(--soft); border-left:1px solid var(--soft); }
.plot svg { display:block; width:100%; height:100%; overflow:visible; }
.ylabels span { position:absolute; right:.5rem; transform:translateY(50%); white-space:nowrap; }
.xlabels { grid-column:2; position:relative; height:1.5rem; margin-top:.25rem; }
.xlabels span { position:absolute; transform:translateX(-50%); white-space:nowrap; }
.xlabels span:first-child { transform:none; }
.xlabels span:last-child[style*="100.00"] { transform:translateX(-100%); }
.xname { text-align:right; font-size:.78rem; margin-top:-.2rem; }
path { fill:none; vector-effect:non-scaling-stroke; stroke-linejoin:round; }
.grid { stroke:var(--line); stroke-width:1; }
.line { stroke-width:2; }
.raw { stroke-width:1; opacity:.32; }
.dots { stroke-width:6; stroke-linecap:round; }
.cursor { position:absolute; top:0; bottom:0; width:1px; background:var(--soft);
  pointer-events:none; }
.tip { position:absolute; top:.4rem; padding:.35rem .55rem; border-radius:6px;
  background:var(--card); border:1px solid var(--rule); color:var(--ink); pointer-events:none;
  white-space:nowrap; box-shadow:0 2px 8px #0003; }
.tip i { display:inline-block; width:.6rem; height:.6rem; border-radius:50%;
  margin-right:.4rem; }
[hidden] { display:none; }
.scroll { overflow-x:auto; max-height:32rem; }
table { border-collapse:collapse; font-size:.88rem; font-variant-numeric:tabular-nums; }
th, td { text-align:right; padding:.25rem .8rem .25rem 0; border-bottom:1px solid var(--rule);
  white-space:nowrap; }
table.facts th, table.facts td { text-align:left; white-space:normal; overflow-wrap:anywhere;
  vertical-align:top; }
table.facts th { font-weight:400; color:var(--soft); white-space:nowrap; }
details { margin:.8rem 0; }
summary { cursor:pointer; }
.sample { background:var(--card); border:1px solid var(--rule); border-radius:8px;
  padding:.8rem 1rem; margin:.7rem 0; }
pre { margin:0; white-space:pre-wrap; overflow-wrap:anywhere; font-family:ui-monospace,monospace;
  font-size:.85rem; }
div.parts { display:flex; height:1.4rem; border-radius:6px; overflow:hidden; margin:.6rem 0; }
.parts i { display:block; height:100%; }
.parts td i { display:inline-block; width:.7rem; height:.7rem; margin-right:.5rem; }
.parts td:first-child { text-align:left; }
.sample pre b { color:var(--c0); }
.samples { columns:2 24rem; column-gap:1rem; }
.samples .sample { break-inside:avoid; margin-top:0; }
"""

SCRIPT = """
for (const chart of document.querySelectorAll('[data-chart]')) {
  const data = JSON.parse(chart.dataset.chart), plot = chart.querySelector('.plot');
  const cursor = plot.querySelector('.cursor'), tip = plot.querySelector('.tip');
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle; else high = middle;
    }
    return step - points[low][0] < points[high][0] - step ? points[low] : points[high];
  };
  const group = n => String(n).replace(/\\B(?=(\\d{3})+$)/g, '\\u00a0');
  const show = event => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = nearest(data.curves[0].points, share * data.last)[0], at = step / data.last;
    tip.textContent = 'step ' + group(step);
    for (const curve of data.curves) {
      const [where, value] = nearest(curve.points, step);
      const row = document.createElement('div'), dot = document.createElement('i');
      dot.style.background = curve.colour;
      const there = where === step ? '' : ' (step ' + group(where) + ')';
      const shown = Math.abs(value) >= 1e4 ? group(Math.round(value)) : value;
      row.append(dot, curve.name + ' ' + shown + there);
      tip.append(row);
    }
    cursor.hidden = tip.hidden = false;
    cursor.style.left = tip.style.left = 100 * at + '%';
    tip.style.transform = at > .5 ? 'translateX(calc(-100% - .6rem))' : 'translateX(.6rem)';
  };
  plot.addEventListener('pointermove', show);
  plot.addEventListener('pointerdown', show);
  plot.addEventListener('pointerleave', () => { cursor.hidden = tip.hidden = true; });
}
"""
