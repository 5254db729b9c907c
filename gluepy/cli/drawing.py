"""A DAG's graph as a picture: `gluepy graph LABEL --format svg`."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from gluepy.cli.text import printable
from gluepy.core.graph import Graph

_CHARACTER, _HEIGHT, _GAP, _LAYERS_APART, _MARGIN = 7.5, 28, 20, 44, 12  # pixels
_STYLE = """\
text { font: 12px ui-monospace, monospace; text-anchor: middle; fill: #1f2328 }
rect { fill: #f6f8fa; stroke: #59636e } circle, path { fill: #59636e } line { stroke: #59636e }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } rect { fill: #151b23; stroke: #9198a1 } circle, path { fill: #9198a1 } line { stroke: #9198a1 }
}"""


def as_svg(graph: Graph, label: str) -> Iterator[str]:
    """The lines of an SVG picture: a task stands below all that it depends on. It needs no script and no other file."""
    layers: list[list[int]] = []
    layer: dict[int, int] = {}
    place: dict[int, float] = {}  # among those of its layer, in 0..1
    for node in graph.order():
        layer[node] = max((layer[other] + 1 for other in graph.dependencies[node]), default=0)
        if layer[node] == len(layers):
            layers.append([])
        layers[layer[node]].append(node)
    for nodes in layers:  # below the middle of what it depends on, so that few lines cross
        middle = {
            node: sum(place[other] for other in graph.dependencies[node]) / (len(graph.dependencies[node]) or 1)
            for node in nodes
        }
        nodes.sort(key=lambda node: (middle[node], node))
        place.update({node: (number + 0.5) / len(nodes) for number, node in enumerate(nodes)})

    names = {node: printable(task) for node, task in enumerate(graph.ids) if task is not None}
    sizes = {node: len(names[node]) * _CHARACTER + 20 if node in names else 8 for node in layer}
    widths = [sum(sizes[node] + _GAP for node in nodes) - _GAP for nodes in layers]
    width = max(widths, default=0)
    middles: dict[int, tuple[float, float]] = {}
    for depth, nodes in enumerate(layers):
        left = _MARGIN + (width - widths[depth]) / 2
        for node in nodes:
            middles[node] = left + sizes[node] / 2, _MARGIN + _HEIGHT / 2 + depth * (_HEIGHT + _LAYERS_APART)
            left += sizes[node] + _GAP
    height = len(layers) * (_HEIGHT + _LAYERS_APART) - _LAYERS_APART + 2 * _MARGIN
    full = width + 2 * _MARGIN
    title = escape(f"The graph of {printable(label)}")

    yield f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{full:g}" height="{height}"'
    yield f' viewBox="0 0 {full:g} {height}"><title>{title}</title><style>{_STYLE}</style>'
    yield '<marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    yield '<path d="M0 0L8 4L0 8z"/></marker>'
    for node, others in enumerate(graph.dependencies):
        x, y = middles[node]
        for other in others:
            above, below = middles[other]
            top = below + (_HEIGHT / 2 if other in names else 0)
            end, arrow = (y - _HEIGHT / 2, ' marker-end="url(#arrow)"') if node in names else (y, "")
            yield f'<line x1="{above:g}" y1="{top:g}" x2="{x:g}" y2="{end:g}"{arrow}/>'
    for node, (x, y) in middles.items():
        if node not in names:
            yield f'<circle cx="{x:g}" cy="{y:g}" r="4"/>'
            continue
        size = sizes[node]
        yield f'<rect x="{x - size / 2:g}" y="{y - _HEIGHT / 2:g}" width="{size:g}" height="{_HEIGHT}" rx="6"/>'
        yield f'<text x="{x:g}" y="{y + 4:g}">{escape(names[node])}</text>'
    yield "</svg>"
