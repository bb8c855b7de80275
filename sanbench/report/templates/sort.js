document.querySelectorAll("thead th").forEach((head) => {
  head.dataset.sort = "";
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex, up = head.getAttribute("aria-sort") === "descending";
    const value = (row) => row.cells[column].textContent.trim(), number = (text) => parseFloat(text.replace("−", "-").replace(/,/g, ""));
    const rows = [...body.rows].sort((a, b) => {
      const [one, two] = [value(a), value(b)], [first, second] = [number(one), number(two)];
      if (isNaN(first) !== isNaN(second)) return isNaN(first) ? 1 : -1;
      return (up ? 1 : -1) * (isNaN(first) ? one.localeCompare(two) : first - second);
    });
    head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
});
