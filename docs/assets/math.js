// Draws the formulas with KaTeX, which lies beside this file.
for (const formula of document.querySelectorAll(".arithmatex")) {
  const text = formula.textContent.trim(); // \(...\) in a line, \[...\] on lines of its own
  katex.render(text.slice(2, -2), formula, { displayMode: text.startsWith("\\["), throwOnError: false });
}
