"""Ordinary English words, for labels and for prompt forms: known words, too, take the meaning that the context gives."""

WORDS: tuple[str, ...] = tuple(
    """
    acorn amber anchor angel apple apron arrow autumn badge bagel balloon banjo barn basket beach bean bear beaver bell bench
    berry bird biscuit blanket boat bone book boot bottle bowl branch bread brick bridge broom brush bucket butter button cabin
    cactus cake camel camera candle canoe carpet carrot castle cedar chair cheese cherry chimney circus clock cloud clover coat
    coconut coin comet copper coral cotton couch cow crab crane cream cricket crow crown cube cup curtain cushion daisy deer desk
    dolphin donkey door dragon drawer dream dress drum duck eagle earth echo elbow engine falcon feather fence fern field finger
    flag flame flask flower flute forest fork fox frog garden garlic gate ghost ginger glass globe glove goat gold goose grape
    grass guitar hammer harbor harp hat hawk hazel helmet heron hill honey horn horse house ink iron island ivory jacket jar
    jewel kettle key king kite kitten ladder lake lamp lantern leaf lemon lettuce lily lion lizard lock lotus magnet maple marble
    market meadow melon mirror mitten monkey moon moss mountain mouse needle nest night noodle oak ocean olive onion orchid otter
    owl oyster paddle palace panda paper parrot pasta peach peanut pearl pebble pencil pepper piano pigeon pillow pilot pine planet
    plate plum pocket pond pony poppy potato puddle pumpkin puppet queen quilt rabbit radio rain raven ribbon rice ring river
    robin rocket roof rope rose saddle sail salmon salt sand scarf seal shadow sheep shell ship shoe silk silver sister sky
    snail snow sock soup spider spoon spring star stone storm stove straw sugar summer sun swan table teapot temple thumb thunder
    tiger toast tomato tower train tree trumpet tulip tunnel turtle umbrella valley vase velvet violin wagon walnut water wheel
    whistle willow window wing winter wolf wood yarn zebra cat dog yes no one five six seven nine pink brown happy quiet brave
    gentle early heavy narrow round sharp smooth sweet warm wild young left right upper lower inside outside
    """.split()  # noqa: SIM905
)

COMMON: tuple[str, ...] = tuple(
    """
    a all an and are as at be brief by can correct for from give has have he her here his if in it its just kind look made make many
    may me most must my new no not now of on only or our own part please see she short single so some such tell that the their them
    then there these they thing time to type use using very was we were which who will with write yes you your
    """.split()  # noqa: SIM905
)
"""What sentences are held together by, for prompt forms that mean nothing."""
