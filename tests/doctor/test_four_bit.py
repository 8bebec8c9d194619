"""What bitsandbytes brings is listed by the names of its compiled libraries."""

from helpers.doctor import four_bit


def test_the_libraries_of_the_wheel_are_listed():
    found = four_bit.libraries()
    assert "cpu" in found and any(name.startswith("rocm") for name in found)
