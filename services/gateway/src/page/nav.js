/** The links to the other pages. An address that serves this page alone has none of them. */
for (const link of document.querySelectorAll("nav a:not([aria-current])")) {
  fetch(link.href, { method: "HEAD", cache: "no-store" }).then(
    ({ ok }) => (link.hidden = !ok),
    () => {},
  );
}
