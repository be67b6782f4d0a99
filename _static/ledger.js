// Sorts and filters the ledger; without it the table is whole, in the order of claims.yml.
addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.ledger")) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], lines = [...body.rows];
    const filters = table.previousElementSibling, chosen = {};
    const word = (line, place) => line.cells[place].textContent.replace("†", "").trim();
    const devices = heads.findIndex(head => head.textContent === "device");
    const words = (line, place) => place === devices ? word(line, place).split(", ") : [word(line, place)];
    const show = () => {
      for (const line of lines)
        line.hidden = Object.entries(chosen).some(([place, value]) => value && !words(line, +place).includes(value));
    };
    heads.forEach((head, place) => {
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sorted = [...lines].sort((a, b) => word(a, place).localeCompare(word(b, place), "en", {numeric: true}));
        body.append(...(down ? sorted.reverse() : sorted));
      };
      head.tabIndex = 0;
      head.onclick = sort;
      head.onkeydown = event => { if (event.key === "Enter") sort(); };
      if (!["verdict", "chapter", "device"].includes(head.textContent)) return;
      const label = document.createElement("label"), select = document.createElement("select");
      const values = new Set(lines.flatMap(line => words(line, place)).filter(Boolean));
      select.append(new Option("all", ""), ...[...values].sort().map(value => new Option(value, value)));
      select.onchange = () => { chosen[place] = select.value; show(); };
      label.append(head.textContent + " ", select);
      filters.append(label);
    });
  }
});
