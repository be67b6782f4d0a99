"""A Sphinx extension that stops `jupyter-book build .`, which would make pages without any output, in silence."""


def setup(app):
    from sphinx.errors import ConfigError

    raise ConfigError("the notebooks of chapters/ hold no outputs: `make book` executes them and builds the pages")
