// Fragments into a video element, by Media Source Extensions. One change of the buffer at a time; a flush overtakes
// nothing that belongs before it.

const BEHIND = 30; // seconds that are kept behind the playhead

export class Player {
  constructor(video, mime) {
    this.video = video;
    this.queue = [];
    this.media = new MediaSource();
    this.address = URL.createObjectURL(this.media);
    video.src = this.address;
    this.media.addEventListener("sourceopen", () => {
      this.buffer = this.media.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => {
        this.arrive();
        this.step();
      });
      this.step();
    }, { once: true });
  }

  append(data) {
    this.queue.push({ data });
    this.step();
  }

  // Forget what is shown from a second on: other fragments will take its place.
  flush(second) {
    this.queue.push({ from: second });
    this.step();
  }

  step() {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || this.media.readyState === "closed") return;
    const old = this.video.currentTime - BEHIND;
    if (buffer.buffered.length && buffer.buffered.start(0) < old - BEHIND) {
      buffer.remove(0, old);
      return;
    }
    const next = this.queue.shift();
    if (!next) return;
    if (next.data) {
      buffer.appendBuffer(next.data);
      this.start();
    } else {
      if (this.second > next.from) this.jump(next.from);
      buffer.remove(next.from, Infinity);
    }
  }

  // Show another second, which nobody has to ask the server for: it knows.
  // Where nothing can be sought yet a video forgets where it was told to go, so it is told later.
  jump(second) {
    this.wanted = second;
    this.arrive();
  }

  arrive() {
    if (this.wanted === undefined || !this.video.seekable.length) return;
    this.jumped = this.wanted;
    this.wanted = undefined;
    this.video.currentTime = this.jumped;
  }

  get second() {
    return this.wanted ?? this.video.currentTime;
  }

  // Whether the person wants to see a second that is not here.
  lacks(second) {
    if (this.jumped !== undefined && Math.abs(second - this.jumped) < 0.01) {
      this.jumped = undefined;
      return false;
    }
    return !this.has(second);
  }

  start() {
    if (this.video.paused && !this.stopped) this.video.play().catch(() => { /* the person has to press play */ });
  }

  has(second) {
    const ranges = this.video.buffered;
    for (let i = 0; i < ranges.length; i += 1) {
      if (ranges.start(i) - 0.1 <= second && second < ranges.end(i)) return true;
    }
    return false;
  }

  close() {
    this.queue = [];
    this.video.removeAttribute("src");
    this.video.load();
    URL.revokeObjectURL(this.address);
  }
}
