// Starts the page, shows the selected sound and handles the keyboard.

const index = JSON.parse(byId("index").textContent);
let player = null;

function select(number) {
  if (number === null || number === list.selected) return;
  list.mark(number);
  loadSound(number, index.files).then(
    (sound) => list.selected === number && show(number, sound),
    (error) => list.selected === number && show(number, null, error.message),
  );
}

function show(number, sound, message = "") {
  player?.close();
  player = null;
  const name = index.names[number] || "unnamed";
  let parts = [element("p", { class: "message", role: "alert" }, message)];
  if (sound) ({ parts, player } = detailsOf(sound, index, list.decimals));
  byId("details").replaceChildren(detailsHeader(name), ...parts);
  byId("details").setAttribute("aria-label", name);
}

// The buttons are for phones, where the list scrolls out of sight.
function detailsHeader(name) {
  const header = element("div", { class: "details-header" }, element("h2", {}, name));
  if (index.names.length < 2) return header;
  const steps = [
    [-1, "Previous sound", "‹"],
    [1, "Next sound", "›"],
  ].map(([step, label, sign]) => {
    const target = list.neighbour(step);
    const button = element("button", { type: "button", "aria-label": label, title: label, disabled: target === null }, sign);
    button.addEventListener("click", () => select(list.neighbour(step)));
    return button;
  });
  header.append(element("div", { class: "steps" }, ...steps));
  return header;
}

const STEPS = { j: 1, ArrowDown: 1, ArrowRight: 1, k: -1, ArrowUp: -1, ArrowLeft: -1 };

// Whether the focused element itself uses this key.
function takesKey(target, key) {
  if (target.matches("input[type=search]")) return true;
  if (target.matches("input[type=range]")) return key.startsWith("Arrow");
  if (key !== " ") return false;
  // The name of the selected sound has no other use for this key, so it plays.
  return target.matches("button:not([aria-current]), input, summary");
}

function onKey(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (key === "Escape" && target === byId("filter")) target.blur();
  if (takesKey(target, key)) return;
  if (key in STEPS) {
    select(list.neighbour(STEPS[key]));
    list.reveal();
  } else if (key === " ") player?.toggle();
  else if (key === "t") player?.playFromStart(0);
  else if (/^[1-9]$/.test(key)) player?.playFromStart(Number(key));
  else if (key === "/") byId("filter").focus();
  else if (key === "?") byId("help").showModal();
  else return;
  event.preventDefault();
}

showAbout(index.about);
showSummary(index.summary);
byId("workspace").hidden = false; // Only now: the summary would push it down.
const list = new SoundList(index, select);
byId("sounds").hidden = index.names.length < 2;
byId("workspace").classList.toggle("single", index.names.length < 2);
byId("help-button").addEventListener("click", () => byId("help").showModal());
document.addEventListener("keydown", onKey);
if (index.names.length) select(0);
else byId("details").append(element("p", { class: "message" }, "This report holds no sounds."));
