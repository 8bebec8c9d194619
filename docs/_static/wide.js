// What is wider than its place says so: a phone shows no scrollbar until it is touched.
addEventListener("load", () => {
  const mark = () => document.querySelectorAll(".cell_output .output, .cell_output .text_html, article p:has(> img), div.table, .highlight pre")
    .forEach(part => part.classList.toggle("wide", part.scrollWidth > part.clientWidth + 2));
  mark();
  addEventListener("resize", mark);
});
