"use strict";
const stored = JSON.parse(document.getElementById("pictures").textContent);
const byName = new Map(stored.pictures.map((picture) => [picture.name, picture]));
const BINS = [[0, 0], [1, 1], [2, 2], [3, 4], [5, 8], [9, 16], [17, 32], [33, 64], [65, 255]];

function viewer(root) {
  const find = (selector) => root.querySelector(selector);
  const stage = find(".stage"), divide = find(".divide");
  const names = { left: root.dataset.left, right: root.dataset.right };

  function cut() { stage.style.setProperty("--cut", divide.value + "%"); }

  function show(side) {
    const picture = byName.get(names[side]), image = find("img." + side);
    image.src = stored.images[picture.image];
    image.alt = picture.label;
    find(".tag-" + side).textContent = picture.label;
  }

  function drag(event) {
    const box = stage.getBoundingClientRect();
    divide.value = Math.round(100 * (event.clientX - box.left) / box.width);
    cut();
  }

  divide.addEventListener("input", cut);
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) { drag(event); } });
  cut();
  show("left");
  show("right");
  if (find(".toggle")) { differences(root, names, show); }
}

function differences(root, names, show) {
  const find = (selector) => root.querySelector(selector);
  const canvas = find(".heat"), toggle = find(".toggle"), amplify = find(".amplify");
  const on = () => toggle.getAttribute("aria-pressed") === "true";

  async function pixels(side) {
    const image = find("img." + side);
    await image.decode();
    const page = document.createElement("canvas");
    page.width = image.naturalWidth;
    page.height = image.naturalHeight;
    const context = page.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, page.width, page.height);
  }

  async function draw() {
    if (!on()) { return; }
    const factor = 2 ** Number(amplify.value);
    const [a, b] = await Promise.all([pixels("left"), pixels("right")]);
    const heat = new ImageData(a.width, a.height), counts = new Array(256).fill(0);
    for (let i = 0; i < a.data.length; i += 4) {
      let level = 0;
      for (let c = 0; c < 3; c++) { level = Math.max(level, Math.abs(a.data[i + c] - b.data[i + c])); }
      counts[level] += 1;
      const [red, green, blue] = colour(Math.min(1, level * factor / 255));
      heat.data[i] = red;
      heat.data[i + 1] = green;
      heat.data[i + 2] = blue;
      heat.data[i + 3] = 255;
    }
    canvas.width = a.width;
    canvas.height = a.height;
    canvas.getContext("2d").putImageData(heat, 0, 0);
    find(".factor").textContent = String(factor);
    say(counts, a.width * a.height);
  }

  function say(counts, total) {
    const largest = counts.reduce((seen, count, level) => (count ? level : seen), 0);
    find(".said").textContent = largest === 0
      ? "The two pictures are equal in every pixel."
      : `${(100 * (total - counts[0]) / total).toFixed(2)} % of the pixels differ, by ${largest} of 255 levels at most. ` +
        `Black is equal; white is ${Math.ceil(255 / 2 ** Number(amplify.value))} levels or more.`;
    const body = find(".histogram tbody");
    body.replaceChildren(...BINS.map(([low, high]) => {
      const count = counts.slice(low, high + 1).reduce((sum, each) => sum + each, 0), share = count / total;
      const row = document.createElement("tr"), bar = document.createElement("span");
      const cells = [low === high ? String(low) : `${low} to ${high}`, String(count), ""].map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
        return cell;
      });
      bar.className = "bar";
      bar.style.width = `${70 * share}%`;
      cells[2].append(bar, `${(100 * share).toFixed(2)} %`);
      return row;
    }));
  }

  toggle.addEventListener("click", () => {
    const pressed = !on();
    toggle.setAttribute("aria-pressed", String(pressed));
    toggle.textContent = pressed ? "Show pictures" : "Show difference";
    canvas.hidden = !pressed;
    find(".difference").hidden = !pressed;
    find(".stage").classList.toggle("heating", pressed);
    draw();
  });
  amplify.addEventListener("input", draw);
  for (const side of ["left", "right"]) {
    const pick = find(".pick-" + side);
    pick.value = names[side];
    pick.addEventListener("change", () => { names[side] = pick.value; show(side); draw(); });
  }
}

function colour(share) {
  const stops = [[0, 0, 0], [87, 15, 109], [187, 55, 84], [249, 142, 8], [252, 255, 220]];
  const place = share * (stops.length - 1), from = Math.min(stops.length - 2, Math.floor(place));
  return stops[from].map((value, channel) => Math.round(value + (place - from) * (stops[from + 1][channel] - value)));
}

document.querySelectorAll(".viewer").forEach(viewer);
