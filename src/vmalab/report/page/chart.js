// The map count over time, stacked by what keeps each VMA apart from the one below.

const SHOWN_GROUPS = 7;
const CHART_HEIGHT = 220;

// The groups of a space as the layers of the chart, the lowest first.
function layersOf(space) {
  const layers = [];
  const put = (title, colourName, numbers) => {
    if (numbers.length) layers.push({ title, colourName, numbers });
  };
  const numbers = space.groups.map((_, i) => i);
  const of = (test) => numbers.filter((i) => test(space.groups[i]));
  put("nothing below it: a gap", "--gap", of((group) => group.gap));
  put("ordinary: segments of a library, different files, memory of a driver", "--ordinary",
    of((group) => group.ordinary && !group.gap));
  put("would merge, but no call has asked", "--unasked", of((group) => group.unasked));
  const byKind = new Map();
  for (const i of of((group) => !group.ordinary && !group.gap && !group.unasked)) {
    const kind = space.groups[i].kind;
    byKind.set(kind, [...(byKind.get(kind) ?? []), i]);
  }
  const ranked = [...byKind].map(([kind, list]) => [kind, list, Math.max(...list.map((i) => highest(space.curves[i].value)))]);
  ranked.sort((a, b) => b[2] - a[2]);
  // What would be too thin to be seen is one layer.
  const least = highest(space.counters.mapCount) / 100;
  const seen = ranked.filter(([, , peak]) => peak > least).slice(0, SHOWN_GROUPS);
  seen.forEach(([kind, list], i) => put(kind, `--layer-${i}`, list));
  put("other reasons", "--rest", ranked.slice(seen.length).flatMap(([, list]) => list));
  return layers;
}

// The records at which any layer changes, and the map count after each of them.
function recordsOf(space) {
  const { first, last, counters } = space;
  const changes = new Uint8Array(last - first + 1);
  changes[0] = changes[last - first] = 1;
  for (const { n } of space.curves) for (let i = 0; i < n.length; i++) changes[n[i] - first] = 1;
  let count = 0;
  for (let i = 0; i < changes.length; i++) count += changes[i];
  const [records, whole] = [new Float64Array(count), new Float64Array(count)];
  for (let i = 0, place = 0, counted = 0; i < changes.length; i++) {
    if (!changes[i]) continue;
    while (counted < counters.n.length && counters.n[counted] <= first + i) counted++;
    records[place] = first + i;
    whole[place++] = counted ? counters.mapCount[counted - 1] : 0;
  }
  return [records, whole];
}

// At some records, in order, the sum of each layer and those below it.
function sumsAt(records, space, layers) {
  const first = records[0];
  // For each record from the first to the last of these the place of the first that is not before it.
  const places = new Uint32Array(records[records.length - 1] - first + 1);
  for (let i = 1; i < records.length; i++) places.fill(i, records[i - 1] - first + 1, records[i] - first + 1);
  const sums = [];
  let below = new Float64Array(records.length);
  for (const layer of layers) {
    const sum = new Float64Array(records.length);
    for (const i of layer.numbers) addSteps(sum, space.curves[i], places, first);
    addUpOn(sum, below);
    sums.push(sum);
    below = sum;
  }
  return sums;
}

// What a curve adds to a sum: at the first place what it is by then, and at each of its points the step.
function addSteps(sum, { n, value }, places, first) {
  let i = upperBound(n, first);
  let before = i ? value[i - 1] : 0;
  sum[0] += before;
  for (; i < n.length && n[i] - first < places.length; i++) {
    sum[places[n[i] - first]] += value[i] - before;
    before = value[i];
  }
}

function addUpOn(steps, below) {
  let whole = 0;
  for (let i = 0; i < steps.length; i++) {
    whole += steps[i];
    steps[i] = whole + below[i];
  }
}

// The places in a sorted column that a chart of so many pixels needs: in each part of the range the last, and those where the
// whole is lowest and highest.
function placesFor(n, whole, from, to, width) {
  const begin = Math.max(0, upperBound(n, from) - 2);
  const end = Math.min(n.length, upperBound(n, to) + 2);
  if (end - begin <= width * 3) return Uint32Array.from({ length: end - begin }, (_, i) => begin + i);
  const kept = new Set();
  for (let place = begin; place < end; ) {
    const part = Math.floor(((n[place] - from) / (to - from)) * width);
    let [low, high, last] = [place, place, place];
    for (; last < end && Math.floor(((n[last] - from) / (to - from)) * width) === part; last++) {
      if (whole[last] < whole[low]) low = last;
      if (whole[last] > whole[high]) high = last;
    }
    kept.add(low).add(high).add(last - 1);
    place = last;
  }
  return Uint32Array.from(kept).sort();
}

class Chart {
  constructor(app) {
    this.app = app;
    this.plot = null;
    this.followSoon = oncePerFrame(() => this.follow());
  }

  show(space) {
    this.space = space;
    this.layers = layersOf(space);
    [this.records, this.whole] = recordsOf(space);
    this.rebuild();
    this.showLegend();
  }

  rebuild() {
    this.plot?.destroy();
    const { app, layers } = this;
    const stepped = uPlot.paths.stepped({ align: 1 });
    const series = [...layers.keys()].reverse().map((i) => ({
      label: layers[i].title,
      fill: colour(layers[i].colourName),
      stroke: colour(layers[i].colourName),
      width: 0,
      paths: stepped,
      points: { show: false },
    }));
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const options = {
      width: byId("chart").clientWidth,
      height: CHART_HEIGHT,
      padding: [8, 0, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
      scales: {
        x: { time: false, range: () => [app.view.n0, app.view.n1] },
        y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] },
      },
      axes: [{ ...axis, size: 28, values: (_, ticks) => ticks.map((n) => (Number.isInteger(n) ? number(n) : "")) },
        { ...axis, size: GUTTER, values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? number(v) : "")) }],
      series: [{}, ...series],
      hooks: {
        draw: [(plot) => this.drawMarks(plot), () => this.moveMark()],
        setSelect: [(plot) => {
          if (plot.select.width < 4) return;
          app.zoomTo(plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x"));
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        }],
      },
    };
    this.mark = make("div", { className: "mark" });
    this.plot = new uPlot(options, this.visible(), byId("chart"));
    this.plot.over.append(this.mark);
    this.plot.over.addEventListener("click", (event) => {
      const n = Math.floor(this.plot.posToVal(event.offsetX, "x"));
      if (this.plot.select.width < 4) app.goTo(n);
    });
    this.plot.over.addEventListener("dblclick", () => app.zoomAll());
  }

  // What the chart shows of the view, the highest sum first: it is drawn below the others.
  visible() {
    const { n0, n1 } = this.app.view;
    const places = placesFor(this.records, this.whole, n0, n1, byId("chart").clientWidth);
    const records = Float64Array.from(places, (place) => this.records[place]);
    return [records, ...sumsAt(records, this.space, this.layers).reverse()];
  }

  // The view has changed.
  follow() {
    this.plot?.setData(this.visible());
  }

  // The failures, and the limit where the curve comes near to it.
  drawMarks(plot) {
    const context = plot.ctx;
    const { left, top, width, height } = plot.bbox;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.fillStyle = colour("--failure");
    context.strokeStyle = colour("--ground");
    context.lineWidth = devicePixelRatio;
    // Of those within one pixel the first.
    const failed = this.app.failures.in(this.space);
    const perPixel = (plot.scales.x.max - plot.scales.x.min) / plot.over.clientWidth;
    for (let i = upperBound(failed, plot.scales.x.min - 1); i < failed.length; i = upperBound(failed, failed[i] + perPixel)) {
      const x = plot.valToPos(failed[i], "x", true);
      if (x > left + width) break;
      context.beginPath();
      context.moveTo(x, top + 9 * devicePixelRatio);
      context.lineTo(x + 4 * devicePixelRatio, top);
      context.lineTo(x - 4 * devicePixelRatio, top);
      context.fill();
      context.stroke();
    }
    const limit = plot.valToPos(this.app.data.limit, "y", true);
    if (limit > top) {
      context.fillRect(left, limit, width, devicePixelRatio);
    }
    context.restore();
  }

  // The line at the chosen record.
  moveMark() {
    if (this.plot) this.mark.style.transform = `translateX(${Math.round(this.plot.valToPos(this.app.n, "x"))}px)`;
  }

  resize() {
    const width = byId("chart").clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: CHART_HEIGHT });
  }

  showLegend() {
    this.legend = this.layers.map((layer) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = `var(${layer.colourName})`;
      const value = make("span", { className: "value" });
      const item = make("li", { title: layer.title }, swatch, make("span", { className: "name", text: layer.title }), value);
      return { layer, item, value };
    }).reverse();
    byId("legend").replaceChildren(...this.legend.map(({ item }) => item));
    this.updateLegend();
  }

  // The values at the place in the trace.
  updateLegend() {
    if (!this.legend) return;
    const { app, space } = this;
    const gone = space.gone && app.n >= space.last;
    this.legend.forEach(({ layer, item, value }) => {
      const now = gone ? 0 : layer.numbers.reduce((sum, i) => sum + space.curveAt(i, app.n), 0);
      value.textContent = number(now);
      item.classList.toggle("none", now === 0);
    });
    byId("count").textContent = `${plural(this.space.mapCountAt(app.n), "VMA", "VMAs")} of ${number(app.data.limit)}`;
  }
}
