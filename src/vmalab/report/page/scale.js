// Where an address is drawn.  Addresses at which nothing is ever mapped are folded: each such gap is a thin line.
// "even" gives every piece between two bounds a height that grows with the logarithm of its size, so that one page and
// a reserved terabyte can be seen together; "bytes" makes heights proportional.

class Scale {
  constructor(space, heights) {
    const used = new Uint8Array(space.places.length);
    const cover = new Int32Array(space.places.length + 1);
    for (let row = 0; row < space.size; row++) {
      used[space.start[row]] = used[space.end[row]] = 1;
      cover[space.start[row]]++;
      cover[space.end[row]]--;
    }
    const numbers = [];
    const mapped = [];
    let depth = 0;
    for (let place = 0; place < used.length; place++) {
      depth += cover[place];
      if (used[place]) {
        numbers.push(place);
        mapped.push(depth > 0);
      }
    }
    this.numbers = Uint32Array.from(numbers);
    this.addresses = Float64Array.from(numbers, (place) => space.places[place]);
    this.mapped = mapped;
    this.sums = new Float64Array(numbers.length);
    let whole = 0;
    for (let i = 0; i + 1 < numbers.length; i++) if (mapped[i]) whole += this.addresses[i + 1] - this.addresses[i];
    for (let i = 0; i + 1 < numbers.length; i++) {
      const bytes = this.addresses[i + 1] - this.addresses[i];
      let height;
      if (heights === "bytes") height = mapped[i] ? bytes : Math.min(bytes, whole / 200);
      else height = mapped[i] ? 1 + Math.log2(bytes / 4096) / 2 : 0.7;
      this.sums[i + 1] = this.sums[i] + height;
    }
    this.total = this.sums[this.sums.length - 1] || 1;
    this.byPlace = new Float64Array(space.places.length);
    for (let i = 0; i < numbers.length; i++) this.byPlace[numbers[i]] = this.sums[i];
  }

  // The height of an address, and back.
  of(address) {
    const i = Math.max(0, upperBound(this.addresses, address) - 1);
    if (i + 1 >= this.addresses.length) return this.total;
    const part = Math.max(0, address - this.addresses[i]) / (this.addresses[i + 1] - this.addresses[i]);
    return this.sums[i] + Math.min(1, part) * (this.sums[i + 1] - this.sums[i]);
  }

  addressAt(height) {
    const i = Math.max(0, Math.min(upperBound(this.sums, height) - 1, this.sums.length - 2));
    if (this.sums.length < 2) return 0;
    const part = (height - this.sums[i]) / (this.sums[i + 1] - this.sums[i]);
    const bytes = part * (this.addresses[i + 1] - this.addresses[i]);
    return this.addresses[i] + Math.floor(Math.max(0, bytes) / 4096) * 4096;
  }
}
