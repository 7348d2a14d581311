"use strict";
(() => {
  const NUM_BINS = 20, MOST_CHANGED = 8, MOST_NAMED = 4, NEVER = 255, PAUSE = 400;
  const find = (name) => document.getElementById(`what-if-${name}`);
  const data = JSON.parse(find("data").textContent);
  const codes = Uint8Array.from(atob(find("codes").textContent), (letter) => letter.charCodeAt(0));
  const { classes, counts, methods, parts, presets, runs, step } = data;
  const numClasses = classes.length;
  const numSamples = codes.length / (runs.length * numClasses);
  const labeled = counts.flatMap((count, label) => Array(count).fill(label));
  const likelihoods = Float64Array.from({ length: NEVER + 1 }, (_, code) => Math.exp(-Math.expm1(code * step)));
  likelihoods[NEVER] = 0;

  // What a prior makes of a run: hits of each class and, by class and bin of confidence, hits less confidence.
  function tally(run, prior) {
    const hits = new Float64Array(numClasses), gaps = new Float64Array(numClasses * NUM_BINS);
    let place = run * numSamples * numClasses;
    for (let sample = 0; sample < numSamples; sample++) {
      let total = 0, most = -1, predicted = 0;
      for (let label = 0; label < numClasses; label++) {
        const mass = likelihoods[codes[place++]] * prior[label];
        total += mass;
        if (mass > most) {
          most = mass;
          predicted = label;
        }
      }
      const label = labeled[sample], confidence = total > 0 ? most / total : 0;
      const hit = predicted === label ? 1 : 0;
      const bin = Math.max(0, Math.ceil(confidence * NUM_BINS) - 1);
      hits[label] += hit;
      gaps[label * NUM_BINS + bin] += hit - confidence;
    }
    return { hits, gaps };
  }

  function score({ hits, gaps }, mix) {
    const excess = new Float64Array(NUM_BINS), byClass = new Float64Array(numClasses).fill(NaN);
    let accuracy = 0;
    for (let label = 0; label < numClasses; label++) {
      if (!(mix[label] > 0)) continue;
      byClass[label] = hits[label] / counts[label];
      accuracy += mix[label] * byClass[label];
      for (let bin = 0; bin < NUM_BINS; bin++) {
        excess[bin] += (mix[label] / counts[label]) * gaps[label * NUM_BINS + bin];
      }
    }
    const groups = data.groups.map((group) => mean(group.classes.map((label) => byClass[label])));
    return { accuracy, groups, ece: excess.reduce((sum, gap) => sum + Math.abs(gap), 0), byClass };
  }

  const asTrained = runs.map((run, index) => tally(index, run.carried));

  // One entry for each method, as trained and compensated, over its runs.
  function judge(mix) {
    return methods.flatMap((method, index) => {
      const own = runs.flatMap((run, number) => (run.method === index ? [number] : []));
      return [false, true].map((compensated) => {
        const scores = own.map((number) => score(compensated ? tally(number, mix) : asTrained[number], mix));
        return {
          method,
          compensated,
          values: ["accuracy", ...data.groups.keys(), "ece"].map((name) =>
            spread(scores.map((each) => (name in each ? each[name] : each.groups[name])))
          ),
          byClass: Array.from(classes.keys(), (label) => mean(scores.map((each) => each.byClass[label]))),
        };
      });
    });
  }

  function mean(values) {
    const known = values.filter((value) => !Number.isNaN(value));
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
  }

  function spread(values) {
    const centre = mean(values);
    const squares = values.reduce((sum, value) => sum + (value - centre) ** 2, 0);
    return { mean: centre, sd: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null };
  }

  const percent = (share, decimals = 1) => (100 * share).toFixed(decimals);
  const withSpread = ({ mean, sd }, show) => {
    if (Number.isNaN(mean)) return "n/a";
    return sd === null ? show(mean) : `${show(mean)}\u00a0±\u00a0${show(sd)}`;
  };
  const signed = (change) => (change === 0 ? "0" : `${change < 0 ? "−" : "+"}${percent(Math.abs(change))}`);
  const listed = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0]);
  const nameOf = (row) => (row.compensated ? `${row.method.name}, compensated` : row.method.name);

  // The mix

  let mix = Float64Array.from(presets[0].shares), origin = presets[0].name;
  let rows = [], pending = 0, silence = 0;

  function setShare({ classes: members }, share) {
    const inside = new Set(members);
    const held = members.reduce((sum, label) => sum + mix[label], 0);
    const others = numClasses - members.length;
    mix = mix.map((mass, label) => {
      if (inside.has(label)) return held > 0 ? (mass * share) / held : share / members.length;
      return held < 1 ? (mass * (1 - share)) / (1 - held) : (1 - share) / others;
    });
  }

  function parse(text) {
    const trimmed = text.trim();
    if (/^[[{]/.test(trimmed)) {
      let parsed;
      try {
        parsed = JSON.parse(trimmed);
      } catch (error) {
        throw new Error(`This is no JSON: ${error.message}`);
      }
      return normalized(Array.isArray(parsed) ? parsed : inOrder(new Map(Object.entries(parsed))));
    }
    return normalized(trimmed === "" ? [] : trimmed.split(/[\s,;]+/).map(Number));
  }

  function inOrder(masses) {
    const unknown = [...masses.keys()].filter((name) => !classes.includes(name));
    const missing = classes.filter((name) => !masses.has(name));
    if (unknown.length) throw new Error(`Expected the names of classes, but got “${unknown[0]}”.`);
    if (missing.length) throw new Error(`Expected a number for every class, but “${missing[0]}” has none.`);
    return classes.map((name) => masses.get(name));
  }

  function normalized(masses) {
    if (masses.length !== numClasses) {
      throw new Error(`Expected ${numClasses} numbers, one for each class, but got ${masses.length}.`);
    }
    const wrong = masses.findIndex((mass) => !(typeof mass === "number" && mass >= 0 && mass < Infinity));
    if (wrong >= 0) throw new Error(`Expected numbers that are not negative, but class ${wrong} has another.`);
    const total = masses.reduce((sum, mass) => sum + mass, 0);
    if (!(total > 0 && total < Infinity)) throw new Error(`Expected a positive sum, but got ${total}.`);
    return Float64Array.from(masses, (mass) => mass / total);
  }

  // The page

  function fill(parent, tag, text, attributes = {}) {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  }

  function fillTable(place, caption, headers, rows) {
    const table = document.createElement("table");
    fill(fill(table, "caption", ""), "span", caption);
    const head = fill(fill(table, "thead", ""), "tr", "");
    for (const header of headers) fill(head, "th", header, { scope: "col" });
    const body = fill(table, "tbody", "");
    for (const [name, ...cells] of rows) {
      const row = fill(body, "tr", "");
      fill(row, "th", name, { scope: "row" });
      for (const cell of cells) fill(row, "td", cell);
    }
    find(place).replaceChildren(table);
    return [...body.rows];
  }

  function showScores() {
    const shares = sliders.map(({ part, share }) => `${part.name} ${percent(share())} %`);
    find("shares").textContent = `This mix, ${origin}: ${shares.join(", ")}.`;
    const lines = fillTable(
      "scores",
      `Mix: ${origin}. Accuracies in percent${runs.length > methods.length ? "; mean ± sd over runs" : ""}. Bold: best mean.`,
      ["Method", "Top-1 ↑", ...data.groups.map((group) => `${group.name} ↑`), "ECE ↓"],
      rows.map((row) => [
        nameOf(row),
        ...row.values.map((value, column) =>
          withSpread(value, column === row.values.length - 1 ? (error) => error.toFixed(3) : percent)
        ),
      ])
    );
    const last = rows[0].values.length - 1;
    const best = rows[0].values.map((_, column) => {
      const means = rows.map((row) => row.values[column].mean).filter((value) => !Number.isNaN(value));
      return column === last ? Math.min(...means) : Math.max(...means);
    });
    rows.forEach((row, index) => {
      const line = lines[index];
      line.classList.toggle("compensated", row.compensated);
      line.style.setProperty("--method", row.method.color);
      line.style.setProperty("--share", `${percent(row.values[0].mean)}%`);
      line.cells[1].classList.add("bar");
      row.values.forEach((value, column) => line.cells[column + 1].classList.toggle("best", value.mean === best[column]));
    });
  }

  function showClasses() {
    const pairs = methods.map((_, index) => [rows[2 * index].byClass, rows[2 * index + 1].byClass]);
    const change = (label) => Math.max(...pairs.map(([before, after]) => Math.abs(after[label] - before[label])));
    const shown = [...classes.keys()]
      .filter((label) => mix[label] > 0 && change(label) > 0)
      .sort((one, other) => change(other) - change(one) || one - other)
      .slice(0, MOST_CHANGED);
    fillTable(
      "classes",
      shown.length
        ? "The classes that compensation changes most at this mix: accuracy as trained → compensated, percent."
        : "Compensation changes the accuracy of no class at this mix.",
      ["Class", "Training images", "Share, %", ...methods.map((method) => method.name)],
      shown.map((label) => [
        classes[label],
        data.train_counts[label].toLocaleString("en"),
        percent(mix[label], 2),
        ...pairs.map(([before, after]) => `${percent(before[label])} → ${percent(after[label])}`),
      ])
    );
  }

  function sentence() {
    const best = rows.reduce((one, other) => (other.values[0].mean > one.values[0].mean ? other : one));
    const top = best.values[0];
    const close = methods.filter((method, index) =>
      method !== best.method &&
      rows.slice(2 * index, 2 * index + 2).some(({ values: [own] }) => top.mean - own.mean <= top.sd + own.sd)
    );
    const changes = methods
      .map((method, index) => ({ method, change: rows[2 * index + 1].values[0].mean - rows[2 * index].values[0].mean }))
      .sort((one, other) => other.change - one.change);
    const named = changes.length > MOST_NAMED ? [changes[0], changes[changes.length - 1]] : changes;
    const rivals = listed(close.map(({ name }) => name));
    const caveat = top.sd === null ? `, level with ${rivals}` : `, but ${rivals} ${close.length > 1 ? "are" : "is"} within the seed spread`;
    return (
      `At this mix ${nameOf(best)} has the highest top-1, ${percent(top.mean)} %${close.length ? caveat : ""}. ` +
      `Compensation changes it by ${listed(named.map(({ method, change }) => `${signed(change)} points for ${method.name}`))}.`
    );
  }

  const order = [...classes.keys()].sort((one, other) => data.train_counts[other] - data.train_counts[one] || one - other);
  const total = data.train_counts.reduce((sum, count) => sum + count, 0);
  const training = order.map((label) => data.train_counts[label] / total);
  const [nowPath, thenPath] = bars();

  function bars() {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${numClasses} 100`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const paths = ["now", "then"].map((name) => {
      const path = document.createElementNS(svg.namespaceURI, "path");
      path.setAttribute("class", name);
      svg.append(path);
      return path;
    });
    find("bars").append(svg);
    return paths;
  }

  function showMix() {
    const now = order.map((label) => mix[label]);
    const highest = Math.max(...now, ...training);
    const up = (share) => (100 - (98 * share) / highest).toFixed(2);
    const gap = numClasses <= 40 ? 0.1 : 0;
    nowPath.setAttribute("d", now.map((share, place) => `M${place + gap} 100V${up(share)}H${place + 1 - gap}V100Z`).join(""));
    thenPath.setAttribute("d", `M0 ${up(training[0])}${training.map((share, place) => `V${up(share)}H${place + 1}`).join("")}`);
    for (const { input, output, share } of sliders) {
      const shown = `${percent(share())} %`;
      output.textContent = shown;
      input.setAttribute("aria-valuetext", shown);
      if (input !== document.activeElement || origin !== OWN) input.value = 100 * share();
    }
  }

  const OWN = "your own";
  const preset = find("preset");
  presets.forEach(({ name }, index) => fill(preset, "option", name, { value: index }));
  const own = fill(preset, "option", OWN, { value: "", disabled: "", hidden: "" });

  const sliders = parts.map((part, index) => {
    const input = find(`part-${index}`);
    const share = () => part.classes.reduce((sum, label) => sum + mix[label], 0);
    input.addEventListener("input", () => {
      setShare(part, input.value / 100);
      changed(OWN);
    });
    return { part, share, input, output: input.nextElementSibling };
  });

  function show() {
    rows = judge(mix);
    showMix();
    showScores();
    showClasses();
  }

  function follow() {
    pending = 0;
    show();
    clearTimeout(silence);
    // A screen reader should hear of the mix that the reader stays at, not of all on the way.
    silence = setTimeout(say, PAUSE);
  }

  function say() {
    find("said").textContent = sentence();
  }

  function changed(name) {
    origin = name;
    find("wrong").textContent = "";
    if (name === OWN) own.selected = true;
    pending ||= requestAnimationFrame(follow);
  }

  preset.addEventListener("change", () => {
    const { name, shares } = presets[preset.value];
    mix = Float64Array.from(shares);
    changed(name);
  });
  find("use").addEventListener("click", () => {
    try {
      mix = parse(find("text").value);
      changed(OWN);
    } catch (error) {
      find("wrong").textContent = error.message;
    }
  });
  find("show").addEventListener("click", () => (find("text").value = JSON.stringify([...mix])));

  show();
  say();
  find("absent").hidden = true;
  document.getElementById("what-if").hidden = false;
})();
