import base64
import io

from PIL import Image

from clipadapter.data.thumbnails import encode_thumbnails, thumbnail_url


def test_thumbnails_are_small_and_end_at_the_budget(tmp_path):
    for i in range(4):
        Image.effect_noise((300, 200), 50).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in (0, 9, 1, 2, 3)]  # there is no file 9
    thumbnails = encode_thumbnails(paths, side=88, quality=70)
    assert thumbnails[1] == "" and all(thumbnails[:1] + thumbnails[2:])
    image = Image.open(io.BytesIO(base64.b64decode(thumbnails[0])))
    assert (image.format, max(image.size)) == ("JPEG", 88)
    first_two = encode_thumbnails(paths, 88, 70, max_letters=len(thumbnails[0]) + len(thumbnails[2]))
    assert first_two == [thumbnails[0], "", thumbnails[2], "", ""]


def test_the_address_contains_the_thumbnail():
    assert thumbnail_url("AAAA") == "data:image/jpeg;base64,AAAA"
    assert thumbnail_url("") == ""
