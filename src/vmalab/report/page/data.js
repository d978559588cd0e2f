// The data of the page: columns of numbers, and what can be asked of them.  Records are counted from 1.

const FOREVER = 0xffffffff;
const ARRAYS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f64: Float64Array };

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// Differences to the row above, or to another column, become numbers again; they wrap as numbers of the type do.
function addUp(column) {
  for (let i = 1; i < column.length; i++) column[i] += column[i - 1];
}

function addTo(column, base) {
  for (let i = 0; i < column.length; i++) column[i] += base[i];
}

// The columns of one element: views of one buffer.
async function unpack(id, index) {
  const packed = fromBase64(document.getElementById(id).textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const buffer = await new Response(stream).arrayBuffer();
  const columns = {};
  for (const [name, [type, at, length, less]] of Object.entries(index)) {
    const column = new ARRAYS[type](buffer, at, length);
    if (less === name) addUp(column);
    else if (less) addTo(column, columns[less]);
    columns[name] = column;
  }
  return columns;
}

// The first place in a sorted column whose value is above the given one.
function upperBound(column, value, from = 0, to = column.length) {
  while (from < to) {
    const middle = (from + to) >> 1;
    if (column[middle] <= value) from = middle + 1;
    else to = middle;
  }
  return from;
}

function highest(column) {
  let found = 0;
  for (let i = 0; i < column.length; i++) if (column[i] > found) found = column[i];
  return found;
}

// Texts, each decoded when it is asked for.
class Texts {
  constructor(columns, name) {
    this.bytes = columns[name];
    this.ends = columns[`${name}.ends`];
    this.decoder = new TextDecoder();
  }

  at(i) {
    if (!(i in this.ends)) return "";
    return this.decoder.decode(this.bytes.subarray(i ? this.ends[i - 1] : 0, this.ends[i]));
  }
}

// The calls that failed, in order, by address space.
class Failures {
  constructor(told, columns, spaces) {
    this.told = told;
    this.bySpace = Array.from({ length: spaces }, () => ({ n: [], why: [] }));
    const [n, space, why] = ["n", "space", "why"].map((name) => columns[`failed.${name}`]);
    for (let i = 0; i < n.length; i++) {
      const here = this.bySpace[space[i]];
      here.n.push(n[i]);
      here.why.push(why[i]);
    }
  }

  // The records of those of a space.
  in(space) {
    return this.bySpace[space.number].n;
  }

  // Of each of those what is told of it, by number.
  why(space) {
    return this.bySpace[space.number].why;
  }
}

// One address space over time.  Rows are lives: a VMA as long as nothing about it changes, in the order of addresses.
class Space {
  constructor(number, described, columns) {
    Object.assign(this, described);
    this.number = number;
    const [from, to] = described.lives;
    const cut = (name) => columns[`lives.${name}`].subarray(from, to);
    this.size = to - from;
    this.places = columns.places;
    this.start = cut("start");
    this.end = cut("end");
    this.born = cut("born");
    this.died = cut("died");
    this.attributes = cut("attributes");
    this.anon = cut("anon");
    this.apart = cut("apart");
    this.moves = columns.moves;
    this.moveNumber = cut("moved");
    const [begin, end] = described.counters;
    const counter = (name) => columns[`counters.${name}`].subarray(begin, end);
    this.counters = { n: counter("n"), mapCount: counter("mapCount") };
    this.curves = described.groups.map((group) => ({
      n: columns["curves.n"].subarray(...group.curve),
      value: columns["curves.value"].subarray(...group.curve),
    }));
    this.gone = !this.died.includes(FOREVER);
    this.stateAt = -1;
    this.stateRows = [];
  }

  startOf(row) {
    return this.places[this.start[row]];
  }

  endOf(row) {
    return this.places[this.end[row]];
  }

  // By how many pages the offset of a VMA is not that of its address.
  movedOf(row) {
    return this.moves[this.moveNumber[row]];
  }

  // The rows that hold after a record, in the order of their addresses.
  rowsAt(n) {
    if (this.stateAt !== n) {
      const rows = [];
      for (let row = 0; row < this.size; row++) {
        if (this.born[row] <= n && n < this.died[row]) rows.push(row);
      }
      this.stateAt = n;
      this.stateRows = rows;
    }
    return this.stateRows;
  }

  // The row that holds an address after a record, or -1.
  rowOf(n, address) {
    if (n === this.stateAt) {
      const rows = this.stateRows;
      let from = 0;
      let to = rows.length;
      while (from < to) {
        const middle = (from + to) >> 1;
        if (this.endOf(rows[middle]) <= address) from = middle + 1;
        else to = middle;
      }
      return from < rows.length && this.startOf(rows[from]) <= address ? rows[from] : -1;
    }
    for (let row = 0; row < this.size; row++) {
      if (this.startOf(row) > address) return -1;
      if (this.born[row] <= n && n < this.died[row] && address < this.endOf(row)) return row;
    }
    return -1;
  }

  // The map count after a record; 0 before the first and once the address space is gone.
  mapCountAt(n) {
    if (this.gone && n >= this.last) return 0;
    const place = upperBound(this.counters.n, n);
    return place ? this.counters.mapCount[place - 1] : 0;
  }

  // The value of a curve after a record.
  curveAt(i, n) {
    const curve = this.curves[i];
    const place = upperBound(curve.n, n);
    return place ? curve.value[place - 1] : 0;
  }

  // Since which record the VMA that starts where a row does is kept apart for the same reason.
  apartSince(row) {
    let first = row;
    while (
      first > 0 &&
      this.start[first - 1] === this.start[row] &&
      this.died[first - 1] === this.born[first] &&
      this.apart[first - 1] === this.apart[row]
    ) {
      first--;
    }
    return this.born[first];
  }

  // The next record after n that changed something.
  nextChange(n) {
    const place = upperBound(this.changes(), n);
    return place < this.changes().length ? this.changes()[place] : n;
  }

  changes() {
    if (!this.changed) {
      const all = new Set(this.born);
      for (const died of this.died) if (died !== FOREVER) all.add(died);
      this.changed = Uint32Array.from(all).sort();
    }
    return this.changed;
  }
}

// What is needed to read rather than to draw: texts of records, and what happened to memory.
class Tale {
  constructor(data, columns, places) {
    this.texts = new Texts(columns, "texts");
    this.words = data.words;
    this.places = places;
    this.grew = data.kindsTold.indexOf("grew");
    this.column = (name) => columns[`tale.${name}`];
  }

  text(n) {
    return this.texts.at(n);
  }

  what(row) {
    const [before, after] = this.words[this.column("said")[row]];
    const end = this.places[this.column("aboutEnd")[row]];
    return end ? before + span(this.places[this.column("aboutStart")[row]], end) + after : before + after;
  }

  // What happened to an address of a space, and before that in the spaces that it was copied from by fork.
  // Any number of times that a VMA only grew is one line.
  story(spaces, space, address) {
    const until = new Map();
    for (let each = space, last = FOREVER; each; ) {
      until.set(each.number, last);
      last = Math.min(last, each.first);
      each = each.parent >= 0 ? spaces[each.parent] : null;
    }
    const [n, of, start, end, kind] = ["n", "space", "start", "end", "kind"].map(this.column);
    const lines = [];
    for (let row = 0; row < n.length; row++) {
      const last = until.get(of[row]);
      if (last === undefined || n[row] > last || (n[row] === last && of[row] !== space.number)) continue;
      if (this.places[start[row]] > address || this.places[end[row]] <= address) continue;
      const previous = lines[lines.length - 1];
      const line = { n: n[row], space: of[row], grew: kind[row] === this.grew, times: 1, what: this.what(row) };
      if (line.grew && previous?.grew && previous.space === line.space) {
        line.times = previous.times + 1;
        line.since = previous.since ?? previous.n;
        lines.pop();
      }
      lines.push(line);
    }
    return lines;
  }
}
