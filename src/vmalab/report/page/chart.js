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

// The value of each layer at every record at which any changes: [records, layer, layer, ...].
function valuesOf(space, layers) {
  const { first, last } = space;
  const places = new Uint32Array(last - first + 1);
  places[0] = places[last - first] = 1;
  for (const curve of space.curves) for (const n of curve.n) places[n - first] = 1;
  const n = new Float64Array(places.reduce((sum, used) => sum + used, 0));
  for (let i = 0, place = 0; i < places.length; i++) {
    if (!places[i]) continue;
    places[i] = place;
    n[place++] = first + i;
  }
  // What each curve adds at its points, and then the sums of that.
  const values = layers.map((layer) => {
    const sum = new Float64Array(n.length);
    for (const { n: at, value } of layer.numbers.map((i) => space.curves[i])) {
      for (let i = 0; i < at.length; i++) sum[places[at[i] - first]] += value[i] - (i ? value[i - 1] : 0);
    }
    for (let i = 1; i < sum.length; i++) sum[i] += sum[i - 1];
    return sum;
  });
  return [n, ...values];
}

// The places in a sorted column that a chart of so many pixels needs: in each part of the range the first, the last, and
// those where the whole is lowest and highest.
function placesFor(n, whole, from, to, width) {
  const begin = Math.max(0, upperBound(n, from) - 2);
  const end = Math.min(n.length, upperBound(n, to) + 2);
  if (end - begin <= width * 4) return Uint32Array.from({ length: end - begin }, (_, i) => begin + i);
  const kept = new Set();
  for (let place = begin; place < end; ) {
    const part = Math.floor(((n[place] - from) / (to - from)) * width);
    let [low, high, last] = [place, place, place];
    for (; last < end && Math.floor(((n[last] - from) / (to - from)) * width) === part; last++) {
      if (whole[last] < whole[low]) low = last;
      if (whole[last] > whole[high]) high = last;
    }
    for (const each of [place, low, high, last - 1]) kept.add(each);
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
    this.values = valuesOf(space, this.layers);
    // Each series is the sum of its layer and those below.
    this.sums = [];
    for (const [i, values] of this.values.slice(1).entries()) {
      this.sums.push(i ? values.map((value, k) => value + this.sums[i - 1][k]) : values);
    }
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
    const [n, top] = [this.values[0], this.sums[this.sums.length - 1]];
    const places = placesFor(n, top, n0, n1, byId("chart").clientWidth);
    const pick = (column) => Float64Array.from(places, (place) => column[place]);
    return [pick(n), ...this.sums.map(pick).reverse()];
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
    const { failures } = this.app;
    let drawn = -Infinity;
    for (const i of failures.in(this.space)) {
      const x = plot.valToPos(failures.n[i], "x", true);
      if (x < left || x > left + width || x - drawn < devicePixelRatio) continue;
      drawn = x;
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
      return { item, value };
    }).reverse();
    byId("legend").replaceChildren(...this.legend.map(({ item }) => item));
    this.updateLegend();
  }

  // The values at the place in the trace.
  updateLegend() {
    if (!this.legend) return;
    const { app, values } = this;
    const place = upperBound(values[0], app.n) - 1;
    const gone = this.space.gone && app.n >= this.space.last;
    const count = this.layers.length;
    this.legend.forEach(({ item, value }, i) => {
      const now = place < 0 || gone ? 0 : values[count - i][place];
      value.textContent = number(now);
      item.classList.toggle("none", now === 0);
    });
    byId("count").textContent = `${plural(this.space.mapCountAt(app.n), "VMA", "VMAs")} of ${number(app.data.limit)}`;
  }
}
