// The curves under the images: signals over the frames shown, keyframes, the span's two ends and the play head.
// Pure drawing; it knows nothing of answers or servers.

const SVG = "http://www.w3.org/2000/svg";
const GUTTER = 52, RIGHT = 12, TOP = 18, GAP = 24, HEIGHT = 176; // pixels; HEIGHT is shared by the plots
const COLOURS = ["#2f6db5", "#c8682f", "#3b8f62", "#8a5fb0", "#b0486d", "#5d7a8c", "#9b8a2f"];
const MARKS = {
  static: "M -4 0 A 4 4 0 1 0 4 0 A 4 4 0 1 0 -4 0", gripper_open: "M -5 4 L 5 4 L 0 -5 Z", gripper_close: "M -5 -4 L 5 -4 L 0 5 Z",
};

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Signals {
  // place: the element that gets the drawing. seek: called with a frame when somebody drags over it.
  constructor(place, seek) {
    this.place = place;
    const at = (event) => {
      if (!this.clip || (event.type === "pointermove" && event.buttons !== 1)) return;
      const { first, last } = this.clip;
      const x = event.clientX - place.getBoundingClientRect().left;
      const frame = first + ((x - GUTTER) / (this.width - GUTTER - RIGHT)) * (last - first);
      seek(Math.min(Math.max(frame, first), last - 1));
    };
    place.addEventListener("pointerdown", at);
    place.addEventListener("pointermove", at);
  }

  x(frame) {
    const { first, last } = this.clip;
    return GUTTER + ((frame - first) / (last - first)) * (this.width - GUTTER - RIGHT);
  }

  draw(clip, span) {
    this.clip = clip;
    this.width = Math.max(this.place.clientWidth, 200);
    this.plot_height = HEIGHT / Math.max(clip.signals.length, 2);
    const row_height = this.plot_height + GAP;
    const height = TOP + clip.signals.length * row_height + 4;
    const svg = element("svg", { width: this.width, height, role: "img", "aria-label": "state of the robot over time" });
    const tops = clip.signals.map((_, row) => TOP + GAP - 6 + row * row_height);
    clip.signals.forEach((plot, row) => svg.append(...this.curves(plot, tops[row])));
    const span_top = TOP - 6;
    this.before = element("rect", { class: "outside", x: GUTTER, y: span_top, height: height - span_top });
    this.after = element("rect", { class: "outside", y: span_top, height: height - span_top });
    this.start = element("line", { class: "end", y1: span_top, y2: height });
    this.end = element("line", { class: "end", y1: span_top, y2: height });
    this.head = element("line", { class: "head", y1: span_top, y2: height });
    svg.append(this.before, this.after);
    for (const [frame, kind] of clip.keyframes) svg.append(...this.keyframe(frame, kind, height));
    clip.signals.forEach((plot, row) => svg.append(this.caption(plot, tops[row])));
    svg.append(this.start, this.end, this.head);
    this.place.replaceChildren(svg);
    this.move_span(span);
  }

  curves(plot, top) {
    const bottom = top + this.plot_height, right = this.width - RIGHT;
    const y = (value) => bottom - (this.plot_height * (value - plot.low)) / (plot.high - plot.low);
    const drawn = [
      element("rect", { class: "plot", x: GUTTER, y: top, width: right - GUTTER, height: this.plot_height }),
      element("text", { class: "tick", x: GUTTER - 5, y: top + 9, "text-anchor": "end" }, plot.high.toFixed(2)),
      element("text", { class: "tick", x: GUTTER - 5, y: bottom, "text-anchor": "end" }, plot.low.toFixed(2)),
    ];
    if (plot.low < 0 && plot.high > 0) drawn.push(element("line", { class: "zero", x1: GUTTER, x2: right, y1: y(0), y2: y(0) }));
    plot.lines.forEach((line, index) => {
      const points = line.values.map((value, i) => `${this.x(this.clip.first + i).toFixed(1)},${y(value).toFixed(1)}`);
      drawn.push(element("polyline", { class: "line", points: points.join(" "), stroke: COLOURS[index % COLOURS.length] }));
    });
    return drawn;
  }

  caption(plot, top) {
    const caption = element("text", { class: "caption", x: GUTTER, y: top - 5 });
    caption.append(element("tspan", {}, plot.title));
    plot.lines.forEach((line, index) => {
      caption.append(element("tspan", { dx: 10, fill: COLOURS[index % COLOURS.length], "font-weight": 600 }, line.name));
    });
    return caption;
  }

  keyframe(frame, kind, height) {
    const group = element("g", { class: `mark ${kind}`, transform: `translate(${this.x(frame)} 7)` });
    group.append(element("path", { d: MARKS[kind] }), element("title", {}, `${kind} at frame ${frame}`));
    return [element("line", { class: `keyframe ${kind}`, x1: this.x(frame), x2: this.x(frame), y1: 13, y2: height }), group];
  }

  move_span({ start, end }) {
    const [from, to] = [this.x(start), this.x(end)];
    this.before.setAttribute("width", from - GUTTER);
    this.after.setAttribute("x", to);
    this.after.setAttribute("width", Math.max(this.width - RIGHT - to, 0));
    for (const [line, at] of [[this.start, from], [this.end, to]]) {
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
    }
  }

  move_head(frame) {
    this.head.setAttribute("transform", `translate(${this.x(frame)} 0)`);
  }
}
