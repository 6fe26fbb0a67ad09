"use strict";
// The live tail of events. Rows come from the server as HTML that it has escaped.
(() => {
  const tail = document.querySelector("[data-stream]");
  if (!tail) return;
  const live = document.getElementById("live");
  const pause = document.getElementById("pause");
  const quiet = document.getElementById("quiet");
  const most = 300;
  let source = null;
  const say = (text, on) => {
    live.textContent = text;
    live.className = on ? "on" : "";
  };
  const start = () => {
    source = new EventSource(tail.dataset.stream);
    source.onopen = () => say("live", true);
    source.onerror = () => say("reconnecting", false);
    source.onmessage = (m) => {
      tail.insertAdjacentHTML("afterbegin", m.data);
      quiet.hidden = true;
      while (tail.rows.length > most) tail.deleteRow(-1);
    };
  };
  const stop = () => {
    source.close();
    source = null;
    say("paused", false);
  };
  pause.addEventListener("click", () => {
    if (source) stop();
    else start();
    pause.textContent = source ? "Pause" : "Go on";
    pause.setAttribute("aria-pressed", String(!source));
  });
  addEventListener("pagehide", () => source && source.close());
  start();
})();
// What a failed request of a button says.
document.addEventListener("htmx:responseError", (e) => {
  const main = document.getElementById("main");
  const p = document.createElement("p");
  p.className = "alarm";
  p.setAttribute("role", "alert");
  p.textContent = "Not done: " + (e.detail.xhr.status === 401 || e.detail.xhr.status === 403 ? "log in again" : "the bridge answered " + e.detail.xhr.status);
  main.prepend(p);
});
// A frame that has the keyboard looks so; style sheets cannot tell.
const markFrames = () => setTimeout(() => {
  for (const f of document.querySelectorAll("iframe")) f.classList.toggle("focused", f === document.activeElement);
});
addEventListener("blur", markFrames);
addEventListener("focus", markFrames);
