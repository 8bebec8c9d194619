// A site that is opened as files may not fetch its pages, so the search takes its excerpts from excerpts.js.
if (location.protocol === "file:") {
  const root = new URL(document.documentElement.dataset.content_root || "./", location.href).href;
  window.fetch = address => {
    const page = new URL(address, location.href).href.slice(root.length).replace(/\.html$/, "");
    const main = document.createElement("div");
    main.setAttribute("role", "main");
    main.textContent = window.pageTexts[decodeURI(page)] || "";
    return Promise.resolve({ text: () => Promise.resolve(main.outerHTML) });
  };
}
