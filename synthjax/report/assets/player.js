// The players of one sound's clips, of which at most one sounds. Their spectrograms share one time axis and playhead.

class Player {
  // The span is that of the spectrograms, [left edge, right edge] in seconds.
  constructor(span) {
    this.span = span;
    this.clips = new Map(); // Place among the sound's clips to {label, audio, button, slider, figure}.
    this.current = 0;
    this.container = element("div", { class: "clips" });
    this.tick = this.tick.bind(this);
  }

  // Makes what the figure is to hold: a button and, to be laid over the picture, a slider.
  addClip(place, label, source, figure) {
    const [min, max] = this.span;
    const button = element("button", { type: "button", class: "play" });
    button.append(byId("play-icon").content.cloneNode(true));
    const slider = element("input", { type: "range", min, max, step: "any", "aria-label": `Position in ${label}` });
    const audio = element("audio", { preload: "none", src: source });
    this.clips.set(place, { label, audio, button, slider, figure });
    button.addEventListener("click", () => this.toggle(place));
    slider.addEventListener("input", () => this.seek(place, Math.max(0, Number(slider.value))));
    slider.addEventListener("pointerup", () => this.play(place));
    audio.addEventListener("play", () => this.showState());
    audio.addEventListener("pause", () => this.showState());
    audio.addEventListener("ended", () => this.seek(place, 0));
    audio.addEventListener("error", () => figure.classList.add("broken"));
    this.showState();
    this.showTime(0);
    return { button, slider, audio };
  }

  toggle(place = this.current) {
    const clip = this.clips.get(place);
    if (clip?.audio.paused) this.play(place);
    else clip?.audio.pause();
  }

  playFromStart(place) {
    if (!this.clips.has(place)) return;
    this.seek(place, 0);
    this.play(place);
  }

  play(place) {
    this.makeCurrent(place);
    // Refused where it cannot be played, which the error event tells, or where a pause comes before the start.
    this.clips.get(place).audio.play().catch(() => this.showState());
    requestAnimationFrame(this.tick);
  }

  seek(place, seconds) {
    this.makeCurrent(place);
    this.clips.get(place).audio.currentTime = seconds;
    this.showTime(seconds);
  }

  makeCurrent(place) {
    this.current = place;
    for (const [other, { audio }] of this.clips) if (other !== place) audio.pause();
  }

  // Falls silent and lets go of what was loaded.
  close() {
    for (const { audio } of this.clips.values()) {
      audio.pause();
      audio.removeAttribute("src");
      audio.load();
    }
    this.clips.clear();
  }

  tick() {
    const audio = this.clips.get(this.current)?.audio;
    if (!audio || audio.paused) return;
    this.showTime(audio.currentTime);
    requestAnimationFrame(this.tick);
  }

  showTime(seconds) {
    const [left, right] = this.span;
    this.container.style.setProperty("--playhead", (seconds - left) / (right - left));
    for (const { slider } of this.clips.values()) {
      slider.value = seconds;
      slider.setAttribute("aria-valuetext", `${seconds.toFixed(1)} seconds`);
    }
  }

  showState() {
    for (const { label, audio, button, figure } of this.clips.values()) {
      figure.classList.toggle("playing", !audio.paused);
      button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${label}`);
    }
  }
}
