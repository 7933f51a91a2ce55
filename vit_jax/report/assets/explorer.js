// The attention explorer: what a token of an image attends to.


async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream();
  const plain = stream.pipeThrough(new DecompressionStream('deflate'));
  return new Response(plain).arrayBuffer();
}

function loadPicture(url) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error('a picture cannot be read'));
    picture.src = url;
  });
}

class Explorer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.canvas = root.querySelector('canvas');
    this.layer = data.layers.length - 1;
    this.head = 'mean';
    this.query = 0; // the tokens before the patches come first
    this.cell = [data.queryGrid[0] >> 1, data.queryGrid[1] >> 1];
    this.loaded = new Map();
    const control = name => root.querySelector(`[name=${name}]`);
    this.controls = {
      image: control('image'),
      layer: control('layer'),
      head: control('head'),
      strength: control('strength'),
    };
    this.controls.layer.value = this.layer;
    this.fillHeads();
    this.listen();
    this.showImage(0);
  }

  listen() {
    const {image, layer, head, strength} = this.controls;
    image.addEventListener('change', () => this.showImage(+image.value));
    layer.addEventListener('change', () => {
      this.layer = +layer.value;
      this.fillHeads();
      this.draw();
    });
    head.addEventListener('change', () => {
      this.head = head.value;
      this.draw();
    });
    strength.addEventListener('input', () => this.draw());
    const point = event => {
      const box = this.canvas.getBoundingClientRect();
      const [rows, columns] = this.data.queryGrid;
      const side = this.data.sides[0];
      const [fine, wide] = this.data.grid;
      const row = (event.clientY - box.top) / box.height * fine / side;
      const column = (event.clientX - box.left) / box.width * wide / side;
      const limit = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x)));
      this.selectPatch(limit(row, rows), limit(column, columns));
    };
    this.canvas.addEventListener('pointermove', point);
    this.canvas.addEventListener('pointerdown', point);
    this.canvas.addEventListener('keydown', event => this.key(event));
  }

  key(event) {
    const moves = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    };
    const move = moves[event.key];
    if (move) {
      event.preventDefault();
      const [rows, columns] = this.data.queryGrid;
      const limit = (x, n) => Math.max(0, Math.min(n - 1, x));
      this.selectPatch(
        limit(this.cell[0] + move[0], rows),
        limit(this.cell[1] + move[1], columns));
    } else if (event.key === '[' || event.key === ']') {
      const next = this.layer + (event.key === ']' ? 1 : -1);
      if (next >= 0 && next < this.data.layers.length) {
        this.layer = next;
        this.controls.layer.value = next;
        this.fillHeads();
        this.draw();
      }
    } else if (event.key === 'Home') {
      event.preventDefault();
      this.selectToken(0);
    }
  }

  get spec() {
    return this.data.layers[this.layer];
  }

  fillHeads() {
    const heads = this.spec.heads;
    if (+this.head >= heads) this.head = 'mean';
    const options = [['mean', 'mean of the heads'], ['rollout', 'rollout']];
    for (let i = 0; i < heads; i++) options.push([String(i), `head ${i + 1}`]);
    this.controls.head.replaceChildren(
      ...options.map(([value, text]) => new Option(text, value)));
    this.controls.head.value = this.head;
    const box = this.root.querySelector('.tokens');
    box.replaceChildren(...this.spec.queries.map((name, i) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = name;
      button.addEventListener('click', () => this.selectToken(i));
      return button;
    }));
  }

  selectToken(i) {
    if (i < this.spec.queries.length) {
      this.query = i;
      this.draw();
    }
  }

  selectPatch(row, column) {
    if (!this.spec.patches) return; // only the class token asks
    this.cell = [row, column];
    this.query = null;
    this.draw();
  }

  async showImage(i) {
    this.image = i;
    if (!this.loaded.has(i)) {
      const buffer = await inflate(this.data.images[i]);
      const picture = await loadPicture(this.data.pictures[i].url);
      this.loaded.set(i, {picture, ...this.unpack(buffer)});
    }
    if (this.image === i) this.draw();
    this.root.dataset.ready = 'true';
  }

  // The largest value of each row, then the steps of all layers.
  unpack(buffer) {
    const [rows, columns] = this.data.queryGrid;
    const [keyRows, keyColumns] = this.data.keyGrid;
    const layers = this.data.layers.map(x => ({
      maps: x.heads + 1,
      queries: x.queries.length + (x.patches ? rows * columns : 0),
      keys: x.keys.length + keyRows * keyColumns,
    }));
    let top = 0;
    for (const x of layers) {
      x.top = top;
      top += x.maps * x.queries;
    }
    let start = 4 * top;
    for (const x of layers) {
      x.start = start;
      start += x.maps * x.queries * x.keys;
    }
    if (start !== buffer.byteLength) {
      throw new Error(`maps of ${buffer.byteLength} bytes, not ${start}`);
    }
    return {
      layers, tops: new Float32Array(buffer, 0, top),
      steps: new Uint8Array(buffer),
    };
  }

  queryIndex() {
    const queries = this.spec.queries.length;
    if (this.query !== null && this.query < queries) return this.query;
    if (!this.spec.patches) return 0;
    if (this.query !== null) return 0;
    return queries + this.cell[0] * this.data.queryGrid[1] + this.cell[1];
  }

  // The probabilities of all keys.
  row() {
    const data = this.loaded.get(this.image);
    const layer = data.layers[this.layer];
    const heads = layer.maps - 1;
    const maps = this.head === 'rollout' ? [heads] :
      this.head === 'mean' ? [...Array(heads).keys()] : [+this.head];
    const query = this.queryIndex();
    const result = new Float64Array(layer.keys);
    for (const map of maps) {
      const index = map * layer.queries + query;
      const top = data.tops[layer.top + index] / maps.length;
      const start = layer.start + index * layer.keys;
      for (let k = 0; k < layer.keys; k++) {
        const step = data.steps[start + k] / this.data.steps;
        result[k] += top * step * step;
      }
    }
    return result;
  }

  draw() {
    const loaded = this.loaded.get(this.image);
    if (!loaded) return;
    const {picture} = loaded;
    const [rows, columns] = this.data.grid;
    const canvas = this.canvas;
    const cell = Math.max(4, Math.ceil(640 / Math.max(rows, columns)));
    canvas.width = cell * columns;
    canvas.height = cell * rows;
    const g = canvas.getContext('2d');
    g.imageSmoothingEnabled = picture.naturalWidth > 100;
    g.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const values = this.row();
    const first = this.spec.keys.length;
    this.shade(g, values, first, cell);
    const areas = this.drawAreas(g, cell);
    this.outlineQuery(g, cell);
    this.tell(values, first, areas);
  }

  // A patch with little attention is dark, one with much is light and yellow.
  shade(g, values, first, cell) {
    const [keyRows, keyColumns] = this.data.keyGrid;
    const size = this.data.sides[1] * cell;
    const strength = this.controls.strength.value / 100;
    let top = 0;
    for (let k = first; k < values.length; k++) top = Math.max(top, values[k]);
    for (let r = 0; r < keyRows; r++) {
      for (let c = 0; c < keyColumns; c++) {
        const share = values[first + r * keyColumns + c] / (top || 1);
        g.fillStyle = `rgba(8, 8, 24, ${strength * (1 - Math.sqrt(share))})`;
        g.fillRect(c * size, r * size, size, size);
        g.fillStyle = `rgba(255, 220, 60, ${0.45 * strength * share})`;
        g.fillRect(c * size, r * size, size, size);
      }
    }
  }

  // The areas that the query attends to most, in layers of area attention.
  drawAreas(g, cell) {
    const areas = this.data.areas[this.layer];
    const query = this.queryIndex() - (areas ? areas.skip : 0);
    if (!areas || query < 0 || this.head === 'rollout') return [];
    // The mean of the heads comes after the heads.
    const mean = areas.best[this.image].length - 1;
    const head = this.head === 'mean' ? mean : +this.head;
    const best = areas.best[this.image][head][query];
    const share = areas.share[this.image][head][query];
    const [, columns] = this.data.grid;
    const prefix = this.spec.keys.length;
    g.lineWidth = Math.max(2, cell / 12);
    best.forEach((area, rank) => {
      const cells = new Set(
        areas.items[area].filter(t => t >= prefix).map(t => t - prefix));
      g.strokeStyle = `rgba(255, 80, 160, ${1 - 0.15 * rank})`;
      g.beginPath();
      for (const t of cells) {
        const r = Math.floor(t / columns);
        const c = t % columns;
        const [x, y] = [c * cell, r * cell];
        const line = (x0, y0, x1, y1) => {
          g.moveTo(x0, y0);
          g.lineTo(x1, y1);
        };
        if (!cells.has(t - columns)) line(x, y, x + cell, y);
        if (!cells.has(t + columns)) line(x, y + cell, x + cell, y + cell);
        if (c === 0 || !cells.has(t - 1)) line(x, y, x, y + cell);
        if (c === columns - 1 || !cells.has(t + 1)) {
          line(x + cell, y, x + cell, y + cell);
        }
      }
      g.stroke();
    });
    return best.map((area, i) => ({
      items: areas.items[area], share: share[i],
      of: head === mean ? 'the mean of the heads' : `head ${head + 1}`,
    }));
  }

  outlineQuery(g, cell) {
    if (this.query !== null || !this.spec.patches) return;
    const size = this.data.sides[0] * cell;
    const [row, column] = this.cell;
    g.lineWidth = 5;
    g.strokeStyle = 'white';
    g.strokeRect(column * size, row * size, size, size);
    g.lineWidth = 2.5;
    g.strokeStyle = '#0b63ce';
    g.strokeRect(column * size, row * size, size, size);
  }

  // Says the same in words, also for a screen reader.
  tell(values, first, areas) {
    const [, keyColumns] = this.data.keyGrid;
    const percent = x => `${(100 * x).toPrecision(3)} %`;
    const name = k => k < first ? this.spec.keys[k] :
      `row ${Math.floor((k - first) / keyColumns) + 1}, ` +
      `column ${(k - first) % keyColumns + 1}`;
    const isToken = this.query !== null || !this.spec.patches;
    const query = isToken ? this.spec.queries[this.queryIndex()] :
      `The patch in row ${this.cell[0] + 1}, column ${this.cell[1] + 1}`;
    const order = [...values.keys()].sort((a, b) => values[b] - values[a]);
    const list = (title, lines) => {
      const heading = document.createElement('h3');
      heading.textContent = title;
      const items = document.createElement('ol');
      items.append(...lines.map(text => {
        const item = document.createElement('li');
        item.textContent = text;
        return item;
      }));
      return [heading, items];
    };
    const info = this.data.pictures[this.image];
    const caption = document.createElement('p');
    caption.textContent = info.caption;
    const output = this.root.querySelector('output');
    const top = order.slice(0, 5).map(k => `${name(k)}: ${percent(values[k])}`);
    const shown = [caption, ...list(`${query} attends to`, top)];
    if (areas.length) {
      const text = a => `${a.items.map(t => name(t)).join(' + ')}: ` +
        percent(a.share);
      shown.push(...list(`Areas of ${areas[0].of}`, areas.map(text)));
    }
    output.replaceChildren(...shown);
    [...this.root.querySelectorAll('.tokens button')].forEach((b, i) =>
      b.setAttribute('aria-pressed', String(isToken && i === this.query)));
    this.root.dataset.query = isToken ? 'token' : this.cell.join(',');
  }
}

for (const root of document.querySelectorAll('.explorer')) {
  new Explorer(root, report.explorers[root.dataset.explorer]);
}
