// A box that scrolls fades out at the side where more of it is to come: telephones draw no scroll bars.
// Boxes of answers come later, so that the live page calls watchBoxes again.

function markCut(box) {
  box.classList.toggle("more-right", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  box.classList.toggle("more-below", box.scrollHeight - box.clientHeight - box.scrollTop > 1);
}

// Boxes are measured again when they are resized or shown; what is within them changes with them.
const sizes = new ResizeObserver((entries) => entries.forEach((entry) => markCut(entry.target)));

function watchBoxes() {
  document.querySelectorAll(".scroll").forEach((box) => sizes.observe(box));
}

document.addEventListener(
  "scroll",
  (event) => {
    if (event.target instanceof Element && event.target.matches(".scroll")) {
      markCut(event.target);
    }
  },
  true,
);
watchBoxes();

