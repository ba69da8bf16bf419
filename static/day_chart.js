// The chart of usage by day, drawn with uPlot, and the form of the days that it shows.

import { $, money, size, whole } from "./common.js";

const DAY_MS = 24 * 3600 * 1000;
const MOST_DAYS = 3660;
const HEIGHT = 220;
const LEAST_WIDTH = 240;

export const MEASURES = {
  cost: { of: (sum) => sum.cost, write: (value) => money(value) },
  tokens: { of: (sum) => sum.tokens.total, write: size },
  requests: { of: (sum) => sum.requests, write: whole },
};

const INCREMENTS = [1, 2, 5].flatMap((step) => [...Array(13).keys()].map((power) => step * 10 ** power)).sort((a, b) => a - b);

const iso = (date) => date.toISOString().slice(0, 10);

/** Return the name of the chosen measure. */
export const measure = () => document.querySelector("input[name=measure]:checked").value;

/** Fill the form with the last days, today included. */
export function latest(count) {
  $("to").value = iso(new Date());
  $("from").value = iso(new Date(Date.now() - (count - 1) * DAY_MS));
}

/** Return the form's days as parameters of the API. */
export function range() {
  const found = new URLSearchParams();
  if ($("from").value) found.set("start_date", $("from").value);
  if ($("to").value) found.set("end_date", $("to").value);
  return found;
}

/** Call show whenever the form's days change. */
export function onDays(show) {
  $("dates").addEventListener("change", show);
  $("dates").addEventListener("submit", (event) => event.preventDefault());
  $("dates").addEventListener("click", (event) => {
    const { days: count } = event.target.dataset;
    if (!count) return;
    latest(Number(count));
    show();
  });
}

/** Return every day of the form's range; days without requests are zero. */
export function filled(found) {
  const known = new Map(found.map((day) => [day.date, day]));
  const dates = [...known.keys()].sort();
  const first = Date.parse($("from").value || dates[0] || iso(new Date()));
  const last = Date.parse($("to").value || dates.at(-1) || iso(new Date()));
  const all = [];
  for (let time = first; time <= last && all.length < MOST_DAYS; time += DAY_MS) {
    const date = iso(new Date(time));
    const none = { date, requests: 0, cost: 0, tokens: { input: 0, output: 0, total: 0 } };
    all.push(known.get(date) ?? none);
  }
  return all;
}

const dayLabels = (_, found) =>
  found.map((seconds) => {
    const date = new Date(seconds * 1000);
    if (date.getUTCHours()) return "";
    return date.toLocaleDateString("en", { day: "numeric", month: "short", timeZone: "UTC" });
  });

/** A chart in a box, in the colors of the theme. It is drawn again when these or the width change. */
export class DayChart {
  /** note: where a screen reader's user finds the figures. */
  constructor(box, note = "The table below has the figures.") {
    this.box = box;
    this.note = note;
    this.days = [];
    this.chart = null;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.chart?.setSize({ width: this.width(), height: HEIGHT })).observe(box);
  }

  width() {
    return Math.max(LEAST_WIDTH, this.box.clientWidth);
  }

  draw(days = this.days) {
    this.days = days;
    const { of, write } = MEASURES[measure()];
    this.chart?.destroy();
    const data = [days.map((day) => Date.parse(day.date) / 1000), days.map(of)];
    this.chart = new uPlot(this.options(write), data, this.box);
    const most = days.reduce((best, day) => (of(day) > of(best) ? day : best), days[0]);
    const peak = most && of(most) ? `; most on ${most.date}: ${write(of(most))}` : "";
    this.box.setAttribute("aria-label", `Chart of ${measure()} by day${peak}. ${this.note}`);
  }

  options(write) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: color("--faint"), font: `12px ${color("--sans")}` };
    return {
      width: this.width(),
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      legend: { show: true, live: true },
      hooks: { setLegend: [(drawn) => this.showLastDay(drawn)] },
      scales: {
        x: { range: (_, least, most) => [least - 43200, most + 43200] },
        y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, ticks: { show: false }, space: 64, values: dayLabels },
        {
          ...axis,
          size: 66,
          grid: { stroke: color("--line"), width: 1 },
          ticks: { show: false },
          incrs: measure() === "cost" ? undefined : INCREMENTS,
          values: (_, found) => found.map(write),
        },
      ],
      series: [
        { label: "Day", value: (_, seconds) => (seconds === null ? "–" : iso(new Date(seconds * 1000))) },
        {
          label: measure(),
          stroke: color("--accent"),
          fill: color("--accent"),
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars({ size: [0.72, 40], radius: 0.12 }),
          value: (_, value) => (value === null ? "–" : write(value)),
        },
      ],
    };
  }

  /** Name the last day below the chart while the pointer is elsewhere. */
  showLastDay(drawn) {
    if (drawn.legend.idx === null && this.days.length) drawn.setLegend({ idx: this.days.length - 1 });
  }
}
