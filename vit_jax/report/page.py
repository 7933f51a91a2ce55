"""The page of a report: one HTML file that holds everything in itself."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import datetime
from html import escape
import importlib.resources
import json
from typing import Any

from vit_jax.recipe.stored import changed_keys
from vit_jax.report import charts, table
from vit_jax.report.runs import Run, differences

_MOST_DIFFERENCES = 60  # rows


@dataclasses.dataclass(frozen=True)
class Section:
  """One section of the page: its name in links, its title, and HTML."""

  name: str
  title: str
  html: str


@dataclasses.dataclass
class Page:
  """What a page shows; `render` makes the HTML.

  Attributes:
    runs: the runs that are compared.
    examined: for a run's name the results of `examined.describe`, with an entry
      'attention': 'pictures' and 'explorer', or 'missing', a reason; or for the
      whole an entry 'missing', why the images were not examined.
  """

  runs: Sequence[Run]
  examined: Mapping[str, Mapping[str, Any]]

  def render(self, library: str, version: str = '') -> str:
    """The page as HTML.

    Args:
      library: JavaScript that draws the charts, of `charts.library`.
      version: if given, the page asks its server for another version of it.
    """
    curves = charts.curves(self.runs)
    data: dict[str, Any] = {
      'version': version,
      'curves': [
        {key: x[key] for key in ('title', 'note', 'spec')} for x in curves
      ],
      'charts': {},
      'explorers': {},
    }
    sections = [
      Section('results', 'Results', _results(self.runs)),
      Section('recipe', 'Recipe', _recipe(self.runs)),
      Section('curves', 'Curves', _curves(curves)),
      *self._of_images(data),
      Section('environment', 'Environment', _environment(self.runs)),
    ]
    scripts = ['charts.js', 'explorer.js', *(['watch.js'] if version else [])]
    names = ', '.join(run.name for run in self.runs)
    now = datetime.datetime.now().strftime('%Y-%m-%d %H:%M')
    running = [run.name for run in self.runs if not run.summary]
    subtitle = f'Written {now}.' + (
      f' Not finished: {", ".join(running)}.' if running else ''
    )
    return _fill(
      asset('page.html'),
      title=escape(f'Report of {names}'),
      subtitle=escape(subtitle),
      style=asset('page.css'),
      navigation=' '.join(
        f'<a href="#{x.name}">{escape(x.title)}</a>' for x in sections
      ),
      sections='\n'.join(
        f'<section id="{x.name}"><h2>{escape(x.title)}</h2>\n{x.html}</section>'
        for x in sections
      ),
      # A '<' in a name, such as </script>, must not end the element.
      data=json.dumps(data).replace('<', '\\u003c'),
      # The names that the library defines must not be names of the page.
      library=f'(() => {{ {library} }})();',
      script='\n'.join(map(asset, scripts)),
    )

  def _of_images(self, data: dict[str, Any]) -> Iterable[Section]:
    """The sections about test images, one of each kind with all runs."""
    makers = (
      ('confusion', 'Confusions', _confusions),
      ('examples', 'Best and worst examples', _examples),
      ('calibration', 'Calibration', _calibration),
      ('attention', 'Attention', _attention),
    )
    for name, title, make in makers:
      html = []
      for index, (run, values) in enumerate(self.examined.items()):
        heading = f'<h3>{escape(run)}</h3>' if len(self.examined) > 1 else ''
        if 'missing' not in values:
          html.append(heading + make(values, data, f'{name}-{index}'))
        elif make is _confusions:  # the reason is said once
          html.append(f'{heading}<p>{escape(values["missing"])}</p>')
      if html:
        yield Section(name, title, '\n'.join(html))


def asset(name: str) -> str:
  """The text of a file of the page: HTML, CSS or JavaScript."""
  folder = importlib.resources.files('vit_jax.report') / 'assets'
  return (folder / name).read_text(encoding='utf-8')


def _fill(template: str, **texts: str) -> str:
  """Replaces each {{name}}, once, so that texts are not searched again."""
  pieces = []
  while template:
    before, _, rest = template.partition('{{')
    name, _, template = rest.partition('}}')
    pieces += [before, texts[name] if name else '']
  return ''.join(pieces)


def html_table(columns: Mapping[str, Sequence[str]]) -> str:
  """A table of {title: cells}; columns of numbers are aligned to the right."""
  kinds = [
    ' class="number"' if table.are_numbers(cells) else ''
    for cells in columns.values()
  ]
  head = ''.join(
    f'<th scope="col"{kind}>{escape(title)}</th>'
    for title, kind in zip(columns, kinds, strict=True)
  )
  body = ''.join(
    '<tr>'
    + ''.join(
      f'<td{kind}>{escape(cell)}</td>'
      for cell, kind in zip(cells, kinds, strict=True)
    )
    + '</tr>\n'
    for cells in table.rows(columns)
  )
  return (
    f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>\n{body}</tbody></table></div>\n'
  )


def _results(runs: Sequence[Run]) -> str:
  return html_table(table.columns(runs))


def _recipe(runs: Sequence[Run]) -> str:
  """What differs between runs, and what the first one sets."""
  html: list[str] = []
  if len(runs) > 1:
    different = list(differences(runs).items())
    names = [run.name for run in runs]
    if different:
      rows = {'key': [key for key, _ in different[:_MOST_DIFFERENCES]]}
      for i, name in enumerate(names):
        rows[name] = [
          table.show_value(x[i]) for _, x in different[:_MOST_DIFFERENCES]
        ]
      html.append(f'<h3>What differs</h3>{html_table(rows)}')
      if len(different) > _MOST_DIFFERENCES:
        html.append(
          f'<p>{len(different) - _MOST_DIFFERENCES} more keys differ.</p>'
        )
    else:
      html.append('<p>The recipes are equal.</p>')
  for run in runs:
    changed = changed_keys(run.recipe)
    rows = {
      'key': list(changed),
      'value': [table.show_value(x) for x in changed.values()],
    }
    is_open = ' open' if len(runs) == 1 else ''
    html.append(
      f'<details{is_open}><summary>{escape(run.name)}: {len(changed)} keys '
      f'that are not the defaults</summary>{html_table(rows)}</details>'
    )
  return '\n'.join(html)


def _curves(curves: Sequence[Mapping[str, Any]]) -> str:
  if not curves:
    return '<p>No metrics have been written yet.</p>'
  panels = ''.join(
    f'<figure class="panel"><h3>{escape(x["title"])}</h3>'
    f'<div class="muted small">{escape(x["note"]) or "&nbsp;"}</div>'
    f'<div class="chart" data-curve="{i}"></div></figure>\n'
    for i, x in enumerate(curves)
  )
  return (
    '<div class="controls"><label>Horizontal axis <select id="horizontal">'
    '<option value="step">step</option><option value="epoch">epoch</option>'
    '<option value="hours">hours</option></select></label></div>\n'
    f'<div class="grid">{panels}</div>'
  )


def _image(entry: Mapping[str, Any], pictures: str = '') -> str:
  """One image with label and prediction below."""
  wrong = '' if entry['right'] else ' class="wrong"'
  label = '' if entry['right'] else f'<br>label: {escape(entry["label"])}'
  alt = escape(f'{entry["name"]}: {entry["label"]}', quote=True)
  picture = pictures or f'<img src="{entry["url"]}" alt="{alt}">'
  kind = ' class="double"' if pictures else ''
  return (
    f'<figure{kind} title="{escape(entry["name"], quote=True)}">{picture}'
    f'<figcaption><span{wrong}>{escape(entry["predicted"])}</span> '
    f'{entry["probability"]:.0%}{label}</figcaption></figure>'
  )


def _images(entries: Iterable[Mapping[str, Any]]) -> str:
  return f'<div class="images">{"".join(map(_image, entries))}</div>'


def _sample(values: Mapping[str, Any]) -> str:
  few = values['images'] < values['of']
  return f'{values["images"]:,} images of {escape(values["data"])}' + (
    f' (a random sample of {values["of"]:,})' if few else ''
  )


def _confusions(
  values: Mapping[str, Any], data: dict[str, Any], name: str
) -> str:
  html = [f'<p class="muted">{_sample(values)}</p>']
  if 'confusion' in values:
    data['charts'][name] = charts.confusion(values['confusion'])
    html.append(f'<div class="chart wide" data-chart="{name}"></div>')
  if values.get('pairs'):
    html.append('<h3>Most confused pairs</h3><div class="grid">')
    html += [
      f'<div class="panel"><p>{pair["images"]:,} x '
      f'{escape(pair["label"])} taken for '
      f'<span class="wrong">{escape(pair["predicted"])}</span></p>'
      f'{_images(pair["examples"])}</div>'
      for pair in values['pairs']
    ]
    html.append('</div>')
  else:
    html.append('<p>No image is confused.</p>')
  return '\n'.join(html)


def _examples(
  values: Mapping[str, Any], data: dict[str, Any], name: str
) -> str:
  del data, name  # there is no chart
  return (
    '<h3>Worst: the largest losses</h3>'
    f'{_images(values["worst"])}<h3>Best: the smallest losses</h3>'
    f'{_images(values["best"])}'
  )


def _calibration(
  values: Mapping[str, Any], data: dict[str, Any], name: str
) -> str:
  data['charts'][name] = charts.calibration(values['calibration'])
  error = values['summary']['calibration_error']
  return (
    f'<p>Expected calibration error {error:.2%} over '
    f'{_sample(values)}. On the dashed line a model is as often right as it '
    'says.</p>'
    f'<div class="chart wide" data-chart="{name}"></div>'
  )


def _attention(
  values: Mapping[str, Any], data: dict[str, Any], name: str
) -> str:
  attention = values['attention']
  if 'missing' in attention:
    return f'<p>{escape(attention["missing"])}</p>'
  figures = []
  for x in attention['pictures']:
    alt = escape(f'{x["name"]}: {x["label"]}', quote=True)
    figures.append(
      _image(
        x,
        f'<span class="pair"><img src="{x["url"]}" alt="{alt}">'
        f'<img src="{x["rollout"]}" alt="the same, shaded by rollout"></span>',
      )
    )
  explorer = dict(attention['explorer'])
  explorer['pictures'] = [
    {
      'url': x['url'],
      'name': x['name'].rpartition('/')[2],
      'caption': f'{x["name"]}: label {x["label"]}, predicted '
      f'{x["predicted"]} ({x["probability"]:.0%})',
    }
    for x in attention['pictures']
  ]
  data['explorers'][name] = explorer
  return (
    '<p>Left the image, right the image shaded by attention rollout '
    '(arXiv:2005.00928): how much each patch contributes to the output.</p>'
    f'<div class="images">{"".join(figures)}</div>\n'
    f'{_explorer(explorer, name)}'
  )


def _explorer(explorer: Mapping[str, Any], name: str) -> str:
  option = lambda i, text: f'<option value="{i}">{escape(text)}</option>'
  images = ''.join(
    option(i, f'{i + 1}: {x["name"]}')
    for i, x in enumerate(explorer['pictures'])
  )
  layers = ''.join(
    option(i, x['name']) for i, x in enumerate(explorer['layers'])
  )
  query, key = explorer['sides']
  joined = ''
  if query > 1 or key > 1:
    joined = (
      f' To keep the page small, {query} x {query} patches are joined '
      f'as queries and {key} x {key} as keys.'
    )
  return (
    '<h3>Explorer</h3><p>Point at a patch, or move with the arrow keys: the '
    'light patches are those that it attends to. The keys [ and ] change the '
    f'layer, Home takes the token before the patches.{joined}</p>\n'
    f'<div class="explorer panel" data-explorer="{name}">'
    f'<div class="stage"><canvas tabindex="0" role="application" '
    f'aria-label="Attention of a patch; arrow keys move"></canvas>'
    '<div class="tokens"></div></div><div class="readout">'
    '<div class="controls">'
    f'<label>image <select name="image">{images}</select></label>'
    f'<label>layer <select name="layer">{layers}</select></label>'
    '<label>head <select name="head"></select></label>'
    '<label>shade <input type="range" name="strength" min="0" max="100" '
    'value="85"></label></div><output aria-live="polite"></output></div></div>'
  )


def _environment(runs: Sequence[Run]) -> str:
  """Versions, revision and devices of each run."""
  facts: dict[str, list[str]] = {}
  for run in runs:
    summary = run.summary
    values = {
      'workdir': run.workdir,
      'git revision': summary.get('git_revision', ''),
      'device': summary.get('device', ''),
      'devices': summary.get('devices', ''),
      'processes': summary.get('processes', ''),
      **summary.get('versions', {}),
    }
    for key, value in values.items():
      facts.setdefault(key, [''] * len(runs))
      facts[key][runs.index(run)] = str(value)
  columns = {'': list(facts)}
  for i, run in enumerate(runs):
    columns[run.name] = [values[i] for values in facts.values()]
  return html_table(columns)
