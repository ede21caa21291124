// Shows one sound: its clips with their spectrograms, and its parameters.

// Loads a sound when it is selected: from an element of the page or, if sounds have files, from a script. A page opened
// from disk may load nothing else.
function loadSound(number, files) {
  if (files === null) return Promise.resolve(JSON.parse(byId(`sound-${number}`).textContent));
  return new Promise((resolve, reject) => {
    const address = `${files}/${String(number).padStart(5, "0")}/sound.js`;
    const script = element("script", { src: address });
    awaited.set(number, resolve);
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      reject(new Error(`${decodeURIComponent(address)} is missing. The folder must lie beside this page.`));
    };
    document.head.append(script);
  });
}

const awaited = new Map();
window.receiveSound = (number, sound) => {
  awaited.get(number)?.(sound);
  awaited.delete(number);
};

// The elements that show one sound, and its player. decimals: of the columns of the list.
function detailsOf(sound, index, decimals) {
  const player = new Player(sound.span);
  const heard = sound.clips.some((clip) => clip.audio !== null);
  const parts = [];
  if (sound.notes.length || sound.gain < 0) parts.push(noteList(sound));
  if (heard) parts.push(scaleLegend(index));
  sound.clips.forEach((clip, place) => {
    const numbers = clip.metrics.some((value) => value !== null);
    if (clip.audio === null && !numbers) return;
    player.container.append(clipFigure(clip, place, player, { index, decimals }));
  });
  parts.push(player.container);
  if (sound.groups.length) parts.push(parameterSection(sound.groups));
  return { parts, player };
}

function noteList(sound) {
  const notes = [...sound.notes];
  if (sound.gain < 0) notes.push(`played ${numberText(-sound.gain, 1)} dB softer than it is, so that nothing clips`);
  return element("ul", { class: "notes" }, ...notes.map((note) => element("li", {}, note)));
}

function scaleLegend(index) {
  const colours = element("span", { class: "scale", style: `--scale: ${index.palette.join(", ")}` });
  const ends = [`−${index.range} dB`, "0 dB, the loudest of these"];
  const title = "Mel spectrograms, mean power of both channels";
  return element("p", { class: "scale-legend" }, element("span", {}, title), element("span", {}, ends[0], colours, ends[1]));
}

function clipFigure(clip, place, player, { index, decimals }) {
  const figure = element("figure", { class: place === 0 ? "clip target" : "clip" });
  const header = element("figcaption", {}, element("span", { class: "clip-label" }, clip.label));
  if (place <= 9 && clip.audio !== null) header.append(element("kbd", { "aria-hidden": "true" }, place || "t"));
  header.append(clipMetrics(clip, index.metrics, decimals));
  figure.append(header);
  if (clip.audio === null) return figure;
  const { button, slider, audio } = player.addClip(place, clip.label, clip.audio, figure);
  header.prepend(button);
  header.append(element("span", { class: "broken-message", role: "alert" }, "cannot be played"));
  figure.append(picture(clip, slider, player.span, index.ticks), audio);
  return figure;
}

function clipMetrics(clip, metrics, decimals) {
  const list = element("dl", { class: "clip-metrics" });
  metrics.forEach((metric, column) => {
    if (clip.metrics[column] === null) return;
    const value = `${numberText(clip.metrics[column], decimals[column])}${metric.unit ? ` ${metric.unit}` : ""}`;
    const term = element("dt", { title: metricTitle(metric) }, metric.label);
    list.append(element("div", {}, term, element("dd", {}, value)));
  });
  return list;
}

// A spectrogram between its axes, its playhead and the slider over it.
function picture(clip, slider, [left, right], ticks) {
  const image = element("img", { src: clip.image, alt: `Mel spectrogram of ${clip.label}`, loading: "lazy", decoding: "async" });
  const plot = element("div", { class: "plot" }, image, element("span", { class: "playhead" }), slider);
  const label = (hz) => (hz >= 1000 ? `${hz / 1000}k` : String(hz));
  const frequencies = ticks.map(([hz, height]) =>
    element("span", { style: `bottom: ${(height * 100).toFixed(2)}%` }, label(hz)),
  );
  const step = tickStep(right);
  const seconds = Array.from({ length: Math.floor(right / step + 1e-9) + 1 }, (_, count) => count * step);
  const times = seconds.map((time) => {
    const place = (((time - left) / (right - left)) * 100).toFixed(2);
    return element("span", { style: `left: ${place}%` }, `${Number(time.toFixed(2))}${time ? "" : " s"}`);
  });
  return element(
    "div",
    { class: "picture" },
    element("div", { class: "frequency-axis", "aria-hidden": "true" }, ...frequencies),
    plot,
    element("div", { class: "corner", "aria-hidden": "true" }, "Hz"),
    element("div", { class: "time-axis", "aria-hidden": "true" }, ...times),
  );
}

// A round step that gives four to ten ticks.
function tickStep(seconds) {
  const power = 10 ** Math.floor(Math.log10(seconds / 4));
  return [5, 2, 1].map((factor) => factor * power).find((step) => step <= seconds / 4);
}
