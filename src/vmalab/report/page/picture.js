// The address space over time: records to the right, addresses upwards.  Beside it, how it is at the chosen record.

const GUTTER = 112; // as wide as the axis of the chart, so that both show the same records above each other
const HEIGHT = 440;
const STRIP = 30;

class Picture {
  constructor(app) {
    this.app = app;
    this.box = byId("picture");
    this.hover = null;
    this.drag = null;
    this.drawSoon = oncePerFrame(() => this.draw());
    this.overlaySoon = oncePerFrame(() => this.drawOverlay());
    this.listen();
  }

  show(space) {
    this.space = space;
    this.setHeights(byId("heights").value);
  }

  setHeights(heights) {
    this.scale = new Scale(this.space, heights);
    this.app.view.y0 = 0;
    this.app.view.y1 = this.scale.total;
    this.drawSoon();
  }

  // -- places ------------------------------------------------------------------------------------

  get width() {
    return Math.max(10, this.box.clientWidth - GUTTER);
  }

  x(n) {
    const { n0, n1 } = this.app.view;
    return GUTTER + ((n - n0) / (n1 - n0)) * this.width;
  }

  y(height) {
    const { y0, y1 } = this.app.view;
    return HEIGHT - ((height - y0) / (y1 - y0)) * HEIGHT;
  }

  recordAt(x) {
    const { n0, n1 } = this.app.view;
    return n0 + ((x - GUTTER) / this.width) * (n1 - n0);
  }

  heightAt(y) {
    const { y0, y1 } = this.app.view;
    return y0 + ((HEIGHT - y) / HEIGHT) * (y1 - y0);
  }

  // Where a row is drawn, from the top down: [top, height].
  extent(row) {
    const top = this.y(this.scale.byPlace[this.space.end[row]]);
    const bottom = this.y(this.scale.byPlace[this.space.start[row]]);
    const height = bottom - top;
    // A line between neighbours, where there is room for one.
    return [top, height > 3 ? height - 1 : Math.max(height, 0.75)];
  }

  // -- drawing -----------------------------------------------------------------------------------

  // The lives do not overlap, so together they fill no more than the picture: they are written as pixels.
  draw() {
    const { space, app } = this;
    this.drawnWidth = this.width;
    const context = fit(byId("lives"), this.box.clientWidth, HEIGHT);
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.width * ratio), Math.round(HEIGHT * ratio)];
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = app.data.kinds.map((_, kind) => pixelOf(app.kindColour(kind)));
    const kinds = app.data.attributes.map((attributes) => colours[attributes.kind]);
    const shaded = kinds.map(shade);
    const { n0, n1, y0, y1 } = app.view;
    const [perRecord, perHeight] = [width / (n1 - n0), height / (y1 - y0)];
    const end = space.gone ? space.last : app.data.records + 1;
    const { born, died, start, attributes } = space;
    const heights = this.scale.byPlace;
    for (let row = 0; row < space.size; row++) {
      if (born[row] > n1 || died[row] <= n0) continue;
      const top = height - (heights[space.end[row]] - y0) * perHeight;
      const bottom = height - (heights[start[row]] - y0) * perHeight;
      if (top >= height || bottom < 0) continue;
      const left = Math.max(0, Math.round((born[row] - n0) * perRecord));
      const right = Math.min(width, Math.max(left + 1, Math.round((Math.min(died[row], end) - n0) * perRecord)));
      const first = Math.max(0, Math.round(top));
      // A line between neighbours, where there is room for one; else every second one is darker.
      const room = bottom - top > 3 * ratio;
      const last = Math.min(height, Math.max(first + 1, Math.round(bottom) - (room ? Math.round(ratio) : 0)));
      const pixel = (room || start[row] & 1 ? kinds : shaded)[attributes[row]];
      // Of many short lives each is one pixel wide.
      if (right - left === 1) for (let at = first * width + left; at < last * width; at += width) pixels[at] = pixel;
      else for (let y = first; y < last; y++) pixels.fill(pixel, y * width + left, y * width + right);
    }
    context.putImageData(image, Math.round(GUTTER * ratio), 0);
    this.drawAddresses(context);
    this.drawOverlay();
  }

  resize() {
    if (this.width !== this.drawnWidth) this.drawSoon();
  }

  // The address at the start of each run of VMAs, as far as there is room.
  drawAddresses(context) {
    const { scale } = this;
    context.font = "11px ui-monospace, monospace";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillStyle = colour("--quiet");
    const [from, to] = [this.app.view.y0, this.app.view.y1];
    let last = Infinity;
    const label = (i) => {
      const y = Math.min(HEIGHT - 6, Math.max(6, this.y(scale.sums[i])));
      if (last - y < 15) return;
      context.fillText(scale.addresses[i].toString(16), GUTTER - 10, y);
      context.fillRect(GUTTER - 6, y, 5, 1);
      last = y;
    };
    const runs = [];
    const others = [];
    for (let i = 0; i < scale.sums.length; i++) {
      if (scale.sums[i] < from || scale.sums[i] > to || !scale.mapped[i]) continue;
      (i === 0 || !scale.mapped[i - 1] ? runs : others).push(i);
    }
    for (const i of runs.length > 3 ? runs : [...runs, ...others].sort((a, b) => a - b)) label(i);
  }

  drawOverlay() {
    const { app, space } = this;
    const context = fit(byId("overlay"), this.box.clientWidth, HEIGHT);
    const row = app.selectedRow();
    context.strokeStyle = colour("--cursor");
    if (app.selected !== null) {
      const y = this.y(this.scale.of(app.selected));
      context.globalAlpha = 0.35;
      context.fillStyle = colour("--cursor");
      context.fillRect(GUTTER, y - 1, this.width, 1);
      context.globalAlpha = 1;
    }
    if (row >= 0) {
      const [top, height] = this.extent(row);
      const left = Math.max(GUTTER, this.x(space.born[row]));
      const right = this.x(Math.min(space.died[row], app.data.records + 1));
      context.lineWidth = 2;
      context.strokeRect(left, top - 0.5, Math.max(2, right - left), Math.max(2, height + 1));
    }
    const x = this.x(app.n);
    if (x >= GUTTER && x <= GUTTER + this.width) {
      context.fillStyle = colour("--cursor");
      context.fillRect(Math.round(x), 0, 1, HEIGHT);
    }
    if (this.drag?.moved) {
      const { x0, y0, x1, y1 } = this.drag;
      context.lineWidth = 1;
      context.globalAlpha = 0.15;
      context.fillStyle = colour("--cursor");
      context.fillRect(x0, y0, x1 - x0, y1 - y0);
      context.globalAlpha = 1;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    this.drawStrip();
  }

  // The address space at the chosen record, with names beside it.
  drawStrip() {
    const { app, space } = this;
    const width = byId("now").clientWidth;
    const context = fit(byId("strip"), width, HEIGHT);
    const selected = app.selectedRow();
    const named = [];
    let drawn = -1;
    for (const row of space.rowsAt(app.n)) {
      const [top, height] = this.extent(row);
      if (top > HEIGHT || top + height < 0) continue;
      const attributes = app.attributesOf(row);
      // Of many in one pixel one is seen.
      if (height < 1 && row !== selected && Math.floor(top * 2) === drawn) continue;
      drawn = Math.floor(top * 2);
      context.fillStyle = app.kindColour(attributes.kind);
      context.fillRect(8, top, STRIP, height);
      if (row === selected) {
        context.lineWidth = 2;
        context.strokeStyle = colour("--cursor");
        context.strokeRect(7, top - 0.5, STRIP + 2, Math.max(2, height + 1));
      }
      const previous = named[named.length - 1];
      if (previous && previous.name === attributes.name && attributes.name && previous.top - (top + height) < 4) {
        previous.top = top;
        previous.chosen ||= row === selected;
      } else {
        named.push({ name: attributes.name, perm: attributes.perm, top, bottom: top + height, chosen: row === selected });
      }
    }
    this.drawNames(context, named, width);
  }

  drawNames(context, named, width) {
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const taken = [];
    const order = named.filter((each) => each.bottom > 0 && each.top < HEIGHT);
    // The chosen one first, then what has a name, then what is large.
    order.sort((a, b) => b.chosen - a.chosen || !!b.name - !!a.name || b.bottom - b.top - (a.bottom - a.top));
    for (const each of order) {
      const y = Math.min(HEIGHT - 7, Math.max(7, (Math.max(0, each.top) + Math.min(HEIGHT, each.bottom)) / 2));
      if (taken.some((other) => Math.abs(other - y) < 14)) continue;
      taken.push(y);
      const text = each.name ? shortName(each.name) : `anonymous ${each.perm}`;
      context.fillStyle = colour(each.chosen ? "--text" : "--quiet");
      context.fillText(text, STRIP + 16, y, width - STRIP - 18);
    }
  }

  // -- the mouse ---------------------------------------------------------------------------------

  listen() {
    const { box, app } = this;
    const at = (event) => {
      const bounds = box.getBoundingClientRect();
      return [event.clientX - bounds.left, event.clientY - bounds.top];
    };
    box.addEventListener("pointerdown", (event) => {
      const [x, y] = at(event);
      if (event.button !== 0 || x < GUTTER) return;
      box.setPointerCapture(event.pointerId);
      this.drag = { x0: x, y0: y, x1: x, y1: y, moved: false };
    });
    box.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (this.drag) {
        this.drag.x1 = Math.min(Math.max(GUTTER, x), GUTTER + this.width);
        this.drag.y1 = Math.min(Math.max(0, y), HEIGHT);
        this.drag.moved ||= Math.hypot(x - this.drag.x0, y - this.drag.y0) > 5;
        this.overlaySoon();
      }
      this.showTip(event, x < GUTTER || this.drag?.moved ? null : [Math.floor(this.recordAt(x)), y]);
    });
    box.addEventListener("pointerup", (event) => {
      const drag = this.drag;
      this.drag = null;
      if (!drag) return;
      if (drag.moved) this.zoomToBox(drag);
      else this.choose(Math.floor(this.recordAt(drag.x0)), drag.y0);
      this.overlaySoon();
    });
    box.addEventListener("pointercancel", () => {
      this.drag = null;
      this.overlaySoon();
    });
    box.addEventListener("pointerleave", () => app.hideTip());
    box.addEventListener("dblclick", () => app.zoomAll());
    box.addEventListener("wheel", (event) => {
      const [x, y] = at(event);
      const step = event.deltaY || event.deltaX;
      if (!step || event.ctrlKey) return;
      event.preventDefault();
      const factor = Math.exp(Math.max(-100, Math.min(100, step)) * 0.004);
      if (event.shiftKey) app.zoomMemory(factor, this.heightAt(y));
      else app.zoomTime(factor, this.recordAt(x));
    }, { passive: false });
    const strip = byId("strip");
    strip.addEventListener("pointermove", (event) => this.showTip(event, [app.n, at(event)[1]]));
    strip.addEventListener("pointerleave", () => app.hideTip());
    strip.addEventListener("click", (event) => this.choose(app.n, at(event)[1]));
  }

  choose(n, y) {
    this.app.goTo(n);
    const address = this.scale.addressAt(this.heightAt(y));
    this.app.select(this.space.rowOf(this.app.n, address) >= 0 ? address : null);
  }

  zoomToBox({ x0, y0, x1, y1 }) {
    const [left, right, top, bottom] = [Math.min(x0, x1), Math.max(x0, x1), Math.min(y0, y1), Math.max(y0, y1)];
    const { view } = this.app;
    // A flat box means records alone, a narrow one addresses alone.
    const [n0, n1] = right - left > 8 ? [this.recordAt(left), this.recordAt(right)] : [view.n0, view.n1];
    const [low, high] = bottom - top > 8 ? [this.heightAt(bottom), this.heightAt(top)] : [view.y0, view.y1];
    this.app.zoomTo(n0, n1, low, high);
  }

  showTip(event, place) {
    const { app, space } = this;
    if (!place) return app.hideTip();
    const [n, y] = place;
    const row = space.rowOf(n, this.scale.addressAt(this.heightAt(y)));
    if (row < 0 || n > app.data.records) return app.hideTip();
    return app.showTip(event, row);
  }
}

// #rrggbb as the number that a pixel of a canvas is, on a machine that puts the lowest byte first.
function pixelOf(colourText) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colourText.slice(at, at + 2), 16));
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

const shade = (pixel) => (((pixel >>> 1) & 0x7f7f7f) + ((pixel >>> 2) & 0x3f3f3f) + 0xff000000) >>> 0;

// The last part of a path; a name in brackets as it is.
function shortName(name) {
  return name.startsWith("[") ? name : name.slice(name.lastIndexOf("/") + 1) || name;
}
