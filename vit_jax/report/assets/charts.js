// Draws the charts of the page, in the colors of the page.


const report = JSON.parse(document.getElementById('report-data').textContent);

// SVG takes its ink from the page, so that a change of the color scheme, or
// printing, needs no new drawing.
const chartConfig = {
  background: 'transparent',
  font: 'system-ui, sans-serif',
  view: {stroke: 'transparent'},
  axis: {
    labelColor: 'currentColor',
    titleColor: 'currentColor',
    domainColor: 'currentColor',
    tickColor: 'currentColor',
    gridColor: 'currentColor',
    gridOpacity: 0.15,
    titleFontWeight: 'normal',
  },
  legend: {labelColor: 'currentColor', titleColor: 'currentColor'},
  range: {
    // Okabe and Ito's colors, which color-blind readers can tell apart.
    category: [
      '#0072b2', '#d55e00', '#009e73', '#cc79a7',
      '#e69f00', '#56b4e9', '#8a7a00', '#888888',
    ],
  },
};

function draw(element, spec) {
  const options = {actions: false, renderer: 'svg', config: chartConfig};
  return vegaEmbed(element, spec, options).catch(error => {
    element.textContent = `This chart cannot be drawn: ${error.message}`;
  });
}

function drawCurves(horizontal) {
  const titles = {step: 'step', epoch: 'epoch', hours: 'hours'};
  for (const element of document.querySelectorAll('[data-curve]')) {
    const spec = structuredClone(report.curves[+element.dataset.curve].spec);
    spec.encoding.x.field = horizontal;
    spec.encoding.x.title = titles[horizontal];
    draw(element, spec);
  }
}

const horizontal = document.getElementById('horizontal');
if (horizontal) {
  horizontal.addEventListener('change', () => drawCurves(horizontal.value));
  drawCurves(horizontal.value);
}
for (const element of document.querySelectorAll('[data-chart]')) {
  draw(element, report.charts[element.dataset.chart]);
}
