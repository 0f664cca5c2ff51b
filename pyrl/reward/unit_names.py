"""The units that may stand beside a number or be left off: data. A word that is not here is no unit.

Left out on purpose is what changes a value when it is left off: dozen, score, pair, half, third, thousand (k, lakh),
factorial, squared, times.
"""

from __future__ import annotations

PERCENT = "%"
DEGREE = "degree"

SYNONYMS = {
    "mm": "millimeter millimetre 毫米",
    "cm": "centimeter centimetre 厘米",
    "dm": "decimeter decimetre 分米",
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "nm": "nanometer nanometre",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd",
    "mile": "mi",
    "acre": "",
    "hectare": "ha",
    "mg": "milligram",
    "g": "gram gm 克",
    "kg": "kilogram kilo 千克 公斤",
    "tonne": "ton",
    "lb": "pound lbs",
    "ounce": "oz",
    "ml": "milliliter millilitre 毫升",
    "cl": "centiliter centilitre",
    "l": "liter litre 升",
    "gallon": "gal",
    "quart": "qt",
    "pint": "",
    "cup": "",
    "teaspoon": "tsp",
    "tablespoon": "tbsp",
    "ms": "millisecond",
    "s": "second sec 秒",
    "minute": "min mins 分钟",
    "hour": "h hr hrs 小时",
    "day": "天",
    "week": "",
    "month": "",
    "year": "yr yrs 年 岁",
    "dollar": "usd buck",
    "cent": "¢",
    "euro": "eur €",
    "pence": "penny pennies",
    "rupee": "rs",
    "yuan": "元 rmb",
    "yen": "",
    "n": "newton",
    "j": "joule",
    "kj": "kilojoule",
    "w": "watt",
    "kw": "kilowatt",
    "v": "volt",
    "ampere": "amp",
    "ohm": "",
    "pa": "pascal",
    "hz": "hertz",
    "mol": "mole",
    "calorie": "cal",
    "kelvin": "",
    "degree f": "fahrenheit",
    "degree c": "celsius",
    "radian": "rad",
    "bit": "",
    "byte": "",
    PERCENT: "percent pct percentage",
    DEGREE: "deg 度",
    "unit": "",
}
"""Canonical name -> other names, without the s of the plural."""

COUNTED = frozenset(
    """
    angle animal answer apple arrangement arrow atom attempt aunt bacteria bag ball balloon banana bar base
    basket bead bear bee bicycle bike bird block board boat book bottle bow box boxes boy bread brick brother
    brownie bucket bug building bus buses button cake candies candle candy car card carrot case cat cell chair
    chapter chicken child children chocolate choice chord circle cities city class classes clip club coin color
    colour column combination cookie coordinate corner cow crate crayon cube customer cut deer desk diagonal
    dice die digit disk divisor dog doll donut door dot dress dresses drop duck edge egg element employee
    entries entry envelope error event face factor families family fan fish fishes flavor flip flower fold
    folder fraction friend frog fruit function game gift girl glass glasses goal goat grade grape graph group
    guest handshake hat hen horse house houseplant inhabitant integer intersection invitation jar job jump key
    kid kitten kitties kitty lamp lap layer leaf leaves lemon lesson letter light line lion loaf loaves lock
    lollipop machine man marble mark match matches meal meeting member men message mice minion monkey mouse move
    muffin multiple nail necklace nickel node note notebook number nut orange outcome page painting pancake
    panel paper parallelogram part participant partition passenger path pattern pea peach peaches pear pebble
    pen pencil people permutation person petal phone photo piece pig pill pizza plant plate player point polygon
    polynomial possibilities possibility post potato potatoes prime prisoner prize problem program puppies puppy
    question rabbit rectangle region result ribbon ring road rock roll room root rope rose route row sandwich
    seat section seed segment sequence set shape sheep sheet shell ship shirt shoe shot side sister slice snack
    sock solution song space sphere spoon spot square stamp star state stem step stick sticker stone store
    strand street string student subset sweet table tank task teacher team tennis term test ticket tie tile
    tournament toy train trapezoid tree triangle trip truck tulip turn value vase vector vehicle vertex vertices
    village visitor vote walk wall way week window wire woman women word worker yogurt zero 个 人 只 块 张 本 条 次 种
    """.split()
)
"""Things that answers count, without the s of the plural."""

PHRASES = {
    "years old": "year",
    "year old": "year",
    "years of age": "year",
    "miles per hour": "mile/hour",
    "mph": "mile/hour",
    "kph": "km/hour",
    "degrees celsius": "degree c",
    "degrees fahrenheit": "degree f",
    "unit squares": "square",
    "line segments": "segment",
    "light years": "light year",
    "ordered pairs": "ordered pair",
    "ordered triples": "ordered triple",
    "real solutions": "solution",
    "real roots": "root",
    "positive integers": "integer",
    "prime numbers": "prime",
    "different ways": "way",
    "possible values": "value",
}
"""Units of several words -> canonical name."""

POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Words that are part of the value."""

CANONICAL = {name: unit for unit, names in SYNONYMS.items() for name in (unit, *names.split())}
