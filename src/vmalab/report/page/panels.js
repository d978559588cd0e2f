// What is read rather than looked at: the chosen VMA and its story, boundaries, failures, what made VMAs.

const LISTED = 200;

function recordButton(app, n, address = null) {
  return make("button", {
    className: "link mono",
    text: number(n),
    title: `Go to record ${number(n)}`,
    on: {
      click: () => {
        app.goTo(n, true);
        if (address !== null) app.select(address);
      },
    },
  });
}

// -- the chosen VMA --------------------------------------------------------------------------------

function factsOf(app, space, row) {
  const attributes = app.attributesOf(row);
  const [start, end] = [space.startOf(row), space.endOf(row)];
  const bytes = end - start;
  const facts = [
    ["range", span(start, end), "mono"],
    ["size", `${size(bytes)}, ${plural(bytes / 4096, "page", "pages")}`],
    ["kind", `${app.data.kinds[attributes.kind].label}: ${app.data.kinds[attributes.kind].meaning}`],
    ["name", attributes.name || "(none)", "mono"],
    ["permissions", attributes.perm, "mono"],
    ["flags", attributes.flags.split(" ").map((letters) => `${letters} ${app.data.flagWords[letters] ?? ""}`).join(" · ")],
  ];
  if (attributes.file) {
    facts.push(["file", `device and inode ${attributes.file}, offset 0x${((space.movedOf(row) + start / 4096) * 4096).toString(16)}`]);
  } else if (space.movedOf(row) && attributes.kind !== KERNEL_KIND(app)) {
    facts.push(["moved", `it was mapped first at page 0x${(space.movedOf(row) + start / 4096).toString(16)}`]);
  }
  facts.push(["written to", space.anon[row] ? `yes: anon_vma ${space.anon[row]}` : "not seen: no anon_vma"]);
  if (attributes.policy) facts.push(["memory policy", attributes.policy]);
  if (attributes.uffd) facts.push(["userfaultfd", attributes.uffd]);
  const group = space.groups[space.apart[row]];
  if (group) facts.push([group.gap ? "below it" : "apart from the VMA below by", group.gap ? "nothing: a gap" : group.kind]);
  const died = space.died[row];
  const until = died === FOREVER ? "the end" : `record ${number(died)}`;
  facts.push(["so from", `record ${number(space.born[row])} until ${until}`]);
  return facts;
}

const KERNEL_KIND = (app) => app.data.kinds.findIndex((kind) => kind.name === "kernel");

function showVma(app) {
  const row = app.selectedRow();
  const { space, selected } = app;
  byId("vma-hint").hidden = selected !== null;
  byId("vma-facts").replaceChildren();
  if (selected === null) {
    byId("vma-title").textContent = "VMA";
  } else if (row < 0) {
    byId("vma-title").textContent = `${hex(selected)} is not mapped at record ${number(app.n)}`;
  } else {
    const attributes = app.attributesOf(row);
    byId("vma-title").textContent = `${span(space.startOf(row), space.endOf(row))} ${attributes.perm} ${attributes.name || "anonymous"}`;
    for (const [name, value, className] of factsOf(app, space, row)) {
      byId("vma-facts").append(make("dt", { text: name }), make("dd", { text: value, className: className ?? "" }));
    }
  }
}

// The story is of an address: it goes on when the VMA that holds it is split, merged or replaced.
function showStory(app) {
  const { tale, selected, space } = app;
  const title = byId("story-title");
  title.hidden = selected === null;
  if (selected === null || !tale) {
    byId("story").replaceChildren();
    title.textContent = selected === null ? "" : "The story is being unpacked";
    return;
  }
  title.textContent = `The story of 0x${selected.toString(16)}`;
  const lines = tale.story(app.spaces, space, selected);
  const items = [];
  let last = null;
  for (const line of lines) {
    const what = line.times > 1
      ? line.what.replace("grew", `grew ${number(line.times)} times from record ${number(line.since)} to this`)
      : line.what;
    if (last && last.n === line.n && last.space === line.space) {
      last.list.append(make("p", { text: what }));
      continue;
    }
    const other = line.space !== space.number ? ` · process ${app.spaces[line.space].pid}` : "";
    const list = make("div", {}, make("p", { className: "by mono", text: tale.text(line.n) + other }), make("p", { text: what }));
    const item = make("li", {}, recordButton(app, line.n), list);
    item.dataset.n = line.n;
    items.push(item);
    last = { n: line.n, space: line.space, list };
  }
  if (!items.length) items.push(make("li", { className: "quiet", text: "It was never mapped." }));
  const shown = items.slice(0, 2000);
  if (shown.length < items.length) {
    shown.push(make("li", { className: "quiet", text: `... and ${number(items.length - shown.length)} more: vmalab why tells them all` }));
  }
  byId("story").replaceChildren(...shown);
  markStory(app);
}

// What is still to come at the chosen record is dimmed.
function markStory(app) {
  const story = byId("story");
  let now = null;
  for (const item of story.children) {
    const later = Number(item.dataset.n) > app.n;
    item.classList.toggle("later", later);
    if (!later) now = item;
  }
  // The last thing that has happened is in sight.
  if (now) {
    const [top, bottom] = [now.offsetTop, now.offsetTop + now.offsetHeight];
    if (top < story.scrollTop || bottom > story.scrollTop + story.clientHeight) story.scrollTop = bottom - story.clientHeight * 0.7;
  }
}

// -- the three lists -------------------------------------------------------------------------------

// Of the lists the one that is seen is made, with what of the page has been unpacked.
function showTab(app) {
  const shown = document.querySelector("[role=tabpanel]:not([hidden])").id;
  byId("tab-failures").textContent = `Failures (${number(app.failures.in(app.space).length)})`;
  if (shown === "boundaries") showBoundaries(app);
  else if (shown === "failures") showFailures(app);
  else showMakers(app);
}

// -- boundaries ------------------------------------------------------------------------------------

function showBoundaries(app) {
  const { space, n } = app;
  const groups = new Map();
  let previous = -1;
  for (const row of space.rowsAt(n)) {
    if (previous >= 0 && space.end[previous] === space.start[row]) {
      const found = groups.get(space.apart[row]);
      if (found) found.push(row);
      else groups.set(space.apart[row], [row]);
    }
    previous = row;
  }
  const ranked = [...groups].filter(([i]) => space.groups[i]).sort(
    (a, b) => space.groups[a[0]].ordinary - space.groups[b[0]].ordinary || b[1].length - a[1].length,
  );
  const open = new Set([...byId("boundaries").querySelectorAll("details[open]")].map((each) => each.dataset.key));
  const total = ranked.reduce((sum, [, rows]) => sum + rows.length, 0);
  const parts = [make("p", { className: "quiet", text:
    `At record ${number(n)}: ${plural(total, "place", "places")} where two VMAs touch and have not merged.` })];
  const kinds = (wanted) => ranked.filter(([i]) => space.groups[i].ordinary === wanted);
  for (const [i, rows] of kinds(false)) parts.push(boundaryGroup(app, i, rows, open));
  if (!kinds(false).length) parts.push(make("p", { text: "None but those that every program has." }));
  const ordinary = kinds(true);
  if (ordinary.length) {
    const count = ordinary.reduce((sum, [, rows]) => sum + rows.length, 0);
    const list = make("div", {}, ...ordinary.map(([i, rows]) => boundaryGroup(app, i, rows, open)));
    const details = make("details", { className: "ordinary", open: open.has("ordinary") },
      make("summary", {}, make("span", { className: "number", text: number(count) }),
        make("span", { text: "ordinary: segments of a library, different files, memory of a driver; every program has them" })), list);
    details.dataset.key = "ordinary";
    parts.push(details);
  }
  byId("boundaries").replaceChildren(...parts);
}

function boundaryGroup(app, i, rows, open) {
  const { space } = app;
  const group = space.groups[i];
  const what = group.file ? `${group.kind} — pieces of ${shortName(group.file)}` : group.kind;
  const details = make("details", {},
    make("summary", {}, make("span", { className: "number", text: number(rows.length) }),
      make("span", { text: what })));
  details.dataset.key = String(i);
  const fill = () => {
    if (details.childElementCount > 1) return;
    const list = make("ul");
    for (const row of rows.slice(0, LISTED)) {
      const since = space.apartSince(row);
      const attributes = app.attributesOf(row);
      list.append(make("li", {},
        make("button", { className: "link mono", text: hex(space.startOf(row)), title: "Choose the VMA above this boundary",
          on: { click: () => app.select(space.startOf(row), true) } }),
        make("span", { className: "mono", text: ` ${attributes.perm} ${shortName(attributes.name || "anonymous")}` }),
        make("span", { className: "quiet", text: " since " }), recordButton(app, since, space.startOf(row)),
        make("span", { className: "by mono", text: ` ${app.tale?.text(since) ?? ""}` })));
    }
    if (rows.length > LISTED) list.append(make("li", { className: "quiet", text: `... and ${number(rows.length - LISTED)} more` }));
    details.append(list);
  };
  details.addEventListener("toggle", () => details.open && fill());
  if (open.has(details.dataset.key)) {
    details.open = true;
    fill();
  }
  return details;
}

// -- failures --------------------------------------------------------------------------------------

function showFailures(app) {
  const { failures, space } = app;
  const [here, why] = [failures.in(space), failures.why(space)];
  const panel = byId("failures");
  if (!here.length) {
    panel.replaceChildren(make("p", { className: "quiet", text: "No call of this address space failed, and every result is as the model predicts." }));
    return;
  }
  const parts = [];
  const keys = failures.told.map((each) => JSON.stringify([each.errno, each.sentence, each.predicted]));
  const groups = new Map();
  for (let i = 0; i < here.length; i++) {
    const key = keys[why[i]];
    const failed = { n: here[i], told: failures.told[why[i]] };
    const list = groups.get(key);
    if (list) list.push(failed);
    else groups.set(key, [failed]);
  }
  for (const list of [...groups.values()].sort((a, b) => b.length - a.length)) parts.push(failureGroup(app, list));
  panel.replaceChildren(...parts);
}

function failureGroup(app, list) {
  const first = list[0].told;
  const why = first.sentence || (first.predicted ? `the model predicts ${first.predicted}` : "");
  const details = make("details", { open: list.length <= 3 },
    make("summary", {}, make("span", { className: "number", text: number(list.length) }),
      make("span", { className: "errno", text: first.errno || "another result" }), make("span", { text: why }),
      first.where ? make("span", { className: "tag mono", text: first.where }) : null));
  const fill = () => {
    if (details.childElementCount > 1) return;
    const rows = list.slice(0, LISTED).map(({ n, told }) => failureRow(app, n, told));
    if (list.length > LISTED) rows.push(make("li", { className: "quiet", text: `... and ${number(list.length - LISTED)} more` }));
    details.append(make("ol", { className: "lines" }, ...rows));
  };
  if (details.open) fill();
  details.addEventListener("toggle", () => details.open && fill());
  return details;
}

function failureRow(app, n, told) {
  return make("li", {}, recordButton(app, n),
    make("div", {}, make("p", { className: "by mono", text: app.tale?.text(n) ?? "" }),
      told.cause ? make("p", { text: told.cause }) : null,
      told.predicted ? make("p", { text: `the model predicts ${told.predicted}` }) : null));
}

// -- what made VMAs --------------------------------------------------------------------------------

function showMakers(app) {
  const { space } = app;
  const parts = [make("p", { className: "quiet", text:
    "The calls that made VMAs, by mapping or splitting; those first whose VMAs were most for longest." }),
    makersTable(space.makers, (maker) => make("td", { className: "mono", text: maker.title }))];
  if (space.stacks.length) {
    parts.push(make("h3", { text: "By stack" }), makersTable(space.stacks, (maker) => make("td", {},
      ...maker.frames.map((frame) => make("div", { className: "mono", text: frame })))));
  }
  byId("makers").replaceChildren(...parts);
}

function makersTable(makers, cell) {
  const whole = makers.reduce((sum, maker) => sum + maker.weight, 0) || 1;
  const rows = makers.map((maker) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${Math.max(1, (maker.weight / whole) * 60)}px`;
    return make("tr", {},
      make("td", { className: "number", text: number(maker.made) }),
      make("td", { className: "number", text: number(maker.alive) }),
      make("td", { className: "number", text: maker.median === null ? "to the end" : number(maker.median) }),
      make("td", {}, bar), cell(maker));
  });
  const head = [["made", "VMAs that it made"], ["left", "of them at the end"],
    ["median life", "the number of records that half of them outlive"], ["share", "of all VMAs at all records"], ["call", ""]];
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map(([text, title]) => make("th", { text, title, scope: "col" })))),
    make("tbody", {}, ...rows));
}
