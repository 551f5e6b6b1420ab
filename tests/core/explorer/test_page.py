"""The explorer's page: one file from many modules."""

import re

from dynamight_core.analysis.explorer.page import page, script


def test_the_page_is_one_file_that_loads_nothing():
    text = page()
    assert "/* style */" not in text and "/* script */" not in text
    assert "http://" not in text and "https://" not in text and 'src="' not in text


def test_every_name_that_a_module_imports_comes_before_it_and_means_one_thing():
    text = script()
    assert not re.search(r"^(import|export)\b", text, re.M)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+|\$)", text, re.M)
    assert len(names) == len(set(names)) > 100
    # A class is used where it is defined or later.
    assert text.index("class Landscape") < text.index("new Landscape")
    assert text.index("const VIRIDIS") < text.index("palette(VIRIDIS")
