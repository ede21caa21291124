// Plays the clips of one sound, one at a time. Their spectrograms share one time axis and one playhead.

class Player {
  // span: the times at the edges of the spectrograms, [left, right] in seconds.
  constructor(span) {
    this.span = span;
    this.clips = new Map(); // From the number of a clip to {label, audio, button, slider, figure}.
    this.current = 0;
    this.container = element("div", { class: "clips" });
    this.tick = this.tick.bind(this);
  }

  // Makes the button, the audio element, and the slider that lies over the picture.
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
    // play() fails if the file is broken (then the error event comes too) or if a pause comes before its start.
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

  // Stops all clips and frees their audio.
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
