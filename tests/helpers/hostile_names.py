"""Twenty names that would inject markup into an unescaped HTML page."""

from __future__ import annotations

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "x onfocus=alert(1) autofocus tabindex=1",
    "<svg/onload=alert(1)>",
    "<iframe src=javascript:alert(1)>",
    "javascript:alert(1)",
    "<!--",
    "--><b>",
    "]]><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "&lt;b&gt; &#60;script&#62;",
    "<style>*{display:none}</style>",
)
