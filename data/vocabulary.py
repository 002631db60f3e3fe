"""The products of the sample catalogue: 32 kinds with their palettes, materials, styles and other names.

Every item that `generate.py` writes is drawn from these tables. Alternatives inside one string are separated by `|`;
a value that appears twice in such a string is drawn twice as often.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A range of one kind: products made for the same occasion share materials, styles and details."""

    occasion: str
    materials: str
    styles: str
    details: str


@dataclass(frozen=True)
class Kind:
    """A product kind, which is one semantic label.

    Attributes:
        noun: What a person calls one product ("shirt"), or the pair ("jeans").
        plural: Whether the noun is grammatically plural.
        count: How many products the catalogue holds.
        price: Lowest and highest price.
        colours: Palette, `|`-separated.
        audiences: Whom it is made for, `|`-separated.
        aliases: Other names people use, of the same grammatical number as `noun`.
        uses: What people say when they describe the need instead of the product.
        lines: The ranges of the kind.
    """

    noun: str
    plural: bool
    count: int
    price: tuple[int, int]
    colours: str
    audiences: str
    aliases: str
    uses: str
    lines: tuple[Line, ...]


CLOTHING = "blue|black|white|red|green|navy|blue|black|white|grey|red|green|pink|beige|blue|yellow|brown|purple"
SMART = "blue|black|white|red|green|navy|grey|beige|black|navy|brown|blue|grey|burgundy|blue|beige"
SHOES = "black|white|blue|red|green|grey|brown|navy|black|white|pink|beige|blue|orange|brown|red"
HOME = "white|blue|black|red|green|yellow|grey|orange|beige|pink|blue|white|turquoise|brown"
TECH = "black|white|blue|red|silver|grey|black|green|gold|pink|black|white|blue|orange"
SHIRT = "blue|" * 10 + "navy|navy|navy|white|white|black|red|green|grey|pink|beige|yellow|purple|brown"
DENIM = "blue|black|blue|grey|white|navy|blue|black|red|green|beige|blue|grey|navy|brown|white"
METAL = "silver|black|gold|brown|blue|white|green|red|silver|gold|pink|black|navy|grey"
LENS = "black|brown|blue|gold|red|white|green|black|silver|pink|brown|grey|purple|blue"

ADULTS = "men|women|men|women|unisex"
EVERYONE = "men|women|kids|men|women|unisex"
NOT_NAMED = "unisex"

KINDS: dict[str, Kind] = {
    "Shirts": Kind(
        "shirt", False, 24, (18, 79), SHIRT, "men|women|kids|men|men|women", "button-up|button-down",
        "something with a collar and buttons for meetings|a smart top with long sleeves and cuffs",
        (
            Line("work", "cotton|viscose", "slim-fit|classic|non-iron", "a button-down collar|neat cuffs and a pocket"),
            Line("wedding", "cotton|silk", "tailored|pleated", "double cuffs|a wide collar and hidden buttons"),
            Line("casual", "denim|flannel|corduroy", "checked|relaxed|oversized", "two chest pockets|snap buttons"),
            Line("summer", "linen|cotton", "short-sleeved|loose", "a grandad collar|roll-up sleeves"),
        ),
    ),
    "T-shirts": Kind(
        "T-shirt", False, 20, (8, 35), CLOTHING, EVERYONE, "tee|crew-neck tee",
        "a simple short-sleeved top to wear under anything|a plain cotton top without a collar",
        (
            Line("casual", "cotton|jersey", "plain|graphic|striped", "a round neck|a small pocket on the chest"),
            Line("running", "polyester|mesh", "light|reflective", "flat seams and fast-drying cloth|a bright strip"),
            Line("gym", "polyester|bamboo", "fitted|sleeveless", "stretch panels at the sides|a scooped back"),
            Line("summer", "cotton|linen", "boxy|cropped", "a V-neck|short wide sleeves"),
        ),
    ),
    "Dresses": Kind(
        "dress", False, 20, (25, 140), CLOTHING, "women|women|women|kids", "gown|frock",
        "an elegant one-piece outfit for an evening out|something to twirl in on the dance floor",
        (
            Line("wedding", "silk|lace|satin", "floor-length|off-shoulder", "a fitted waist|a low back with a tie"),
            Line("party", "velvet|satin|viscose", "short|sequinned", "thin straps|a skirt that swings"),
            Line("work", "wool|viscose", "knee-length|belted", "side pockets|three-quarter sleeves"),
            Line("summer", "cotton|linen", "floral|flowing", "a square neck|buttons all the way down"),
        ),
    ),
    "Jeans": Kind(
        "jeans", True, 18, (25, 110), DENIM, EVERYONE, "skinnies|jeans",
        "five-pocket trousers that get better with wear|sturdy indigo bottoms for the weekend",
        (
            Line("casual", "denim|stretch denim", "skinny|straight-leg|bootcut", "five pockets|a faded wash"),
            Line("work", "stretch denim|denim", "slim-fit|dark-wash", "clean seams|hidden rivets"),
            Line("party", "denim|stretch denim", "high-waisted|ripped", "a frayed hem|metal studs"),
        ),
    ),
    "Trousers": Kind(
        "trousers", True, 16, (22, 95), SMART, EVERYONE, "slacks|chinos",
        "smart bottoms to go with a jacket at the office|pressed long bottoms with a crease",
        (
            Line("work", "wool|viscose", "pleated|straight-leg", "a sharp crease|belt loops and slanted pockets"),
            Line("casual", "cotton|corduroy", "relaxed|tapered", "a drawstring waist|deep pockets"),
            Line("hiking", "nylon|polyester", "zip-off|stretchy", "knee pads and six pockets|zips at the knee"),
            Line("summer", "linen|cotton", "wide-leg|cropped", "an elastic waist|turned-up hems"),
        ),
    ),
    "Shorts": Kind(
        "shorts", True, 16, (12, 55), CLOTHING, EVERYONE, "short trousers|Bermudas",
        "bottoms that end above the knee for hot days|something light that leaves my knees free",
        (
            Line("running", "polyester|mesh", "split|lined", "a key pocket|a soft inner brief"),
            Line("gym", "polyester|jersey", "loose|stretchy", "a wide waistband|zipped pockets"),
            Line("summer", "cotton|linen", "chino|pleated", "turned-up hems|slanted pockets"),
            Line("cycling", "nylon|polyester", "padded|tight", "a gel pad and grippy hems|a high back"),
        ),
    ),
    "Skirts": Kind(
        "skirt", False, 16, (15, 80), CLOTHING, "women|women|women|kids", "miniskirt|midi skirt",
        "a bottom half without legs to wear with tights|something that swishes from the waist down",
        (
            Line("work", "wool|viscose", "pencil|knee-length", "a slit at the back|a hidden zip"),
            Line("party", "satin|leather", "mini|sequinned", "a high waist|a side zip"),
            Line("school", "polyester|cotton", "pleated|tartan", "an adjustable waist|box pleats"),
            Line("summer", "cotton|linen", "flowing|wrap", "a tie belt|three tiers"),
        ),
    ),
    "Sweaters": Kind(
        "sweater", False, 18, (25, 130), CLOTHING, EVERYONE, "jumper|pullover",
        "a warm knitted layer to pull over my head|something woolly and soft for the chilly months",
        (
            Line("winter", "wool|cashmere", "cable-knit|roll-neck|chunky", "ribbed cuffs|a high folded collar"),
            Line("work", "merino|cashmere", "fine-knit|V-neck", "a slim cut to wear over a collar|neat ribbing"),
            Line("casual", "cotton|wool", "striped|oversized", "dropped shoulders|a round neck"),
        ),
    ),
    "Hoodies": Kind(
        "hoodie", False, 16, (20, 75), CLOTHING, EVERYONE, "hooded sweatshirt|hooded top",
        "a comfy top with a hood and a pouch in front|a fleecy layer I can pull over my head with strings at the neck",
        (
            Line("casual", "cotton|jersey", "oversized|zip-up|printed", "a kangaroo pocket|a lined hood"),
            Line("gym", "polyester|cotton", "light|cropped", "thumb holes|side vents"),
            Line("school", "cotton|fleece", "plain|colour-block", "a name label|soft brushed lining"),
        ),
    ),
    "Jackets": Kind(
        "jacket", False, 18, (35, 180), CLOTHING, EVERYONE, "windbreaker|anorak",
        "an outer layer to keep the wind and drizzle off|a short zip-up layer for outdoors",
        (
            Line("rain", "nylon|polyester", "waterproof|packable", "taped seams|a peaked hood"),
            Line("hiking", "fleece|nylon", "breathable|padded", "zips under the arms|a chin guard"),
            Line("casual", "denim|leather|suede", "bomber|biker|cropped", "a quilted lining|metal zips"),
            Line("cycling", "polyester|nylon", "reflective|windproof", "a long back with a pocket|bright strips"),
        ),
    ),
    "Coats": Kind(
        "coat", False, 16, (60, 260), SMART, "men|women|kids|men|women", "overcoat|parka",
        "a long heavy layer for freezing weather|the warmest thing to wear on top of a suit",
        (
            Line("winter", "wool|down", "quilted|long|hooded", "a warm lining|deep pockets and a storm flap"),
            Line("work", "wool|cashmere", "double-breasted|tailored", "a notched collar|horn buttons"),
            Line("rain", "cotton|polyester", "belted|waterproof", "a buckled belt|a detachable hood"),
        ),
    ),
    "Blazers": Kind(
        "blazer", False, 15, (50, 210), SMART, "men|women|men|women|kids", "sports coat|suit jacket",
        "a tailored top layer with lapels|the upper half of a suit to look sharp",
        (
            Line("work", "wool|viscose", "single-breasted|slim-fit", "notched lapels|two flap pockets"),
            Line("wedding", "silk|wool|linen", "three-button|shawl-collar", "a pocket square slot|satin lapels"),
            Line("party", "velvet|satin", "fitted|double-breasted", "gold buttons|a bright lining"),
        ),
    ),
    "Leggings": Kind(
        "leggings", True, 15, (12, 60), CLOTHING, "women|women|kids|unisex", "tights|stretch pants",
        "skin-tight stretchy bottoms to move in|close-fitting elastic bottoms for a workout",
        (
            Line("yoga", "bamboo|cotton", "high-waisted|seamless", "a wide folded waistband|four-way stretch"),
            Line("gym", "nylon|polyester", "compression|cropped", "a phone pocket|mesh panels behind the knee"),
            Line("running", "polyester|nylon", "reflective|ankle-length", "a zipped back pocket|zips at the ankle"),
            Line("winter", "fleece|merino", "lined|thermal", "a brushed inside|soft flat seams"),
        ),
    ),
    "Socks": Kind(
        "socks", True, 15, (4, 25), CLOTHING, EVERYONE, "ankle socks|knee socks",
        "something soft to wear inside my shoes|knitted warmers so my toes do not freeze",
        (
            Line("winter", "wool|cashmere", "thick|knee-high", "a cushioned foot|ribbed tops"),
            Line("running", "polyester|bamboo", "ankle|padded", "arch support|a seamless toe"),
            Line("work", "cotton|merino", "plain|thin", "a reinforced heel|stay-up cuffs"),
            Line("hiking", "merino|wool", "crew|double-layer", "padding at heel and toe|blister guards"),
        ),
    ),
    "Pyjamas": Kind(
        "pyjamas", True, 14, (18, 85), CLOTHING, EVERYONE, "PJs|sleep clothes",
        "something comfy to wear in bed|a matching set to sleep in",
        (
            Line("home", "cotton|silk|satin", "two-piece|striped|piped", "a button front|an elastic waist"),
            Line("winter", "flannel|fleece", "checked|long-sleeved", "warm cuffs|a soft brushed inside"),
            Line("summer", "cotton|bamboo", "short|sleeveless", "a loose cut|a breathable weave"),
        ),
    ),
    "Swimwear": Kind(
        "swimsuit", False, 14, (15, 70), CLOTHING, "women|women|kids", "bathing suit|swimming costume",
        "something to wear in the pool|an outfit for the sea and the water slides",
        (
            Line("beach", "nylon|polyester", "one-piece|halter-neck|striped", "removable cups|ties at the hips"),
            Line("summer", "nylon|polyester", "high-waisted|ruffled", "UV protection|an open back"),
            Line("gym", "polyester|nylon", "racerback|long-sleeved", "chlorine-proof cloth|flat seams for laps"),
        ),
    ),
    "Sneakers": Kind(
        "sneakers", True, 18, (30, 130), SHOES, EVERYONE, "trainers|tennis shoes",
        "comfortable flat footwear to go with denim|laced rubber-soled footwear for walking in town",
        (
            Line("casual", "leather|canvas|suede", "low-top|high-top|chunky", "a white rubber sole|padded ankles"),
            Line("school", "canvas|leather", "slip-on|velcro", "easy straps|a toe cap that takes knocks"),
            Line("summer", "canvas|mesh", "light|platform", "a cork footbed|breathing holes"),
        ),
    ),
    "Running shoes": Kind(
        "running shoes", True, 16, (55, 180), SHOES, ADULTS + "|kids", "runners|jogging shoes",
        "cushioned footwear for my marathon training|springy footwear for a morning jog",
        (
            Line("running", "mesh|knit", "cushioned|light|stable", "a springy foam sole|a breathable upper"),
            Line("gym", "mesh|knit", "flat|flexible", "a wide grippy base|a sock-like collar"),
            Line("rain", "nylon|knit", "waterproof|grippy", "a sealed upper|a deep-lugged sole"),
        ),
    ),
    "Boots": Kind(
        "boots", True, 16, (45, 190), SHOES, EVERYONE, "ankle boots|booties",
        "tall sturdy footwear for mud and snow|footwear that covers my ankles on rough trails",
        (
            Line("winter", "leather|suede", "lined|fur-trimmed", "a deep tread|a warm fleece inside"),
            Line("hiking", "leather|nylon", "lace-up|high-cut", "ankle support|a stiff gripping sole"),
            Line("rain", "rubber|leather", "knee-high|pull-on", "a sealed seam|pull loops"),
            Line("work", "leather|suede", "polished|Chelsea", "elastic sides|a low heel"),
        ),
    ),
    "Sandals": Kind(
        "sandals", True, 15, (15, 90), SHOES, EVERYONE, "flip-flops|sliders",
        "open-toed footwear for hot weather|something airy for my feet on the sand",
        (
            Line("beach", "rubber|cork", "slip-on|flat", "a soft toe post|a quick-drying strap"),
            Line("summer", "leather|suede", "strappy|wedge", "a buckled ankle strap|a woven band"),
            Line("hiking", "nylon|rubber", "sporty|closed-toe", "three adjustable straps|a rugged sole"),
        ),
    ),
    "Backpacks": Kind(
        "backpack", False, 16, (25, 140), SHOES, EVERYONE, "rucksack|daypack",
        "something to carry my books on both shoulders|a bag with two straps to haul gear up a mountain",
        (
            Line("school", "polyester|canvas", "roomy|printed", "a pencil pocket|a padded back"),
            Line("work", "leather|nylon", "slim|roll-top", "a laptop sleeve|a hidden pocket"),
            Line("hiking", "nylon|polyester", "40-litre|ventilated", "a hip belt|a rain cover"),
            Line("travel", "nylon|canvas", "foldable|anti-theft", "lockable zips|a luggage strap"),
        ),
    ),
    "Handbags": Kind(
        "handbag", False, 15, (30, 190), SMART + "|pink|gold", "women", "purse|clutch",
        "a small bag for my lipstick and phone|an arm-carried bag that looks elegant",
        (
            Line("party", "satin|velvet|leather", "beaded|envelope", "a chain strap|a magnetic clasp"),
            Line("work", "leather|suede", "structured|tote", "three compartments|a zipped top"),
            Line("casual", "canvas|leather", "slouchy|crossbody", "a long strap|an outer pocket"),
            Line("wedding", "silk|satin", "mini|pleated", "a pearl clasp|a wrist loop"),
        ),
    ),
    "Watches": Kind(
        "watch", False, 16, (30, 290), METAL, ADULTS + "|kids", "wristwatch|timepiece",
        "something on my wrist that tells the time|a strap with a dial and hands",
        (
            Line("work", "steel|leather", "slim|automatic", "a date window|a sapphire glass"),
            Line("running", "silicone|plastic", "digital|GPS", "a heart-rate sensor|a lap timer"),
            Line("wedding", "steel|leather", "dress|mother-of-pearl", "Roman numerals|a polished case"),
            Line("school", "plastic|silicone", "easy-read|glow-in-the-dark", "big numbers|a soft buckle"),
        ),
    ),
    "Scarves": Kind(
        "scarf", False, 15, (10, 80), CLOTHING, ADULTS, "shawl|neck warmer",
        "something to wrap around my neck|a long knitted band against a cold throat",
        (
            Line("winter", "wool|cashmere", "chunky|tartan|fringed", "long tassels|a double layer"),
            Line("work", "silk|viscose", "square|printed", "rolled edges|a fine border"),
            Line("summer", "cotton|linen", "light|gauzy", "raw edges|a soft crinkle"),
        ),
    ),
    "Hats": Kind(
        "hat", False, 16, (10, 60), CLOTHING, EVERYONE, "cap|beanie",
        "something to keep my head warm|headwear to shade my face",
        (
            Line("winter", "wool|fleece", "bobble|ribbed", "ear flaps|a turned-up edge"),
            Line("summer", "straw|cotton", "wide-brimmed|bucket", "a ribbon band|a sweatband inside"),
            Line("running", "polyester|mesh", "peaked|light", "a dark underbrim|a quick-dry band"),
            Line("beach", "straw|cotton", "floppy|packable", "a chin cord|a deep crown"),
        ),
    ),
    "Sunglasses": Kind(
        "sunglasses", True, 15, (12, 150), LENS, EVERYONE, "shades|tinted glasses",
        "something to protect my eyes from glare|dark lenses for driving into bright light",
        (
            Line("beach", "acetate|plastic", "oversized|mirrored", "full UV protection|floating arms"),
            Line("cycling", "plastic|titanium", "wraparound|sporty", "rubber nose pads|swappable lenses"),
            Line("summer", "acetate|titanium", "round|aviator|cat-eye", "polarised lenses|a slim case"),
        ),
    ),
    "Mugs": Kind(
        "mug", False, 16, (6, 35), HOME, NOT_NAMED, "cup|coffee cup",
        "something to drink my morning coffee from|a thing with a handle for hot chocolate",
        (
            Line("home", "ceramic|porcelain|glass", "handmade|speckled|large", "a wide handle|a glazed rim"),
            Line("work", "ceramic|glass", "stackable|lidded", "a bamboo lid|a funny face on the side"),
            Line("travel", "steel|bamboo", "insulated|leakproof", "a screw-down lid|a double wall that holds heat"),
            Line("camping", "enamel|steel", "dented-look|light", "a rolled rim|a folding handle"),
        ),
    ),
    "Lamps": Kind(
        "lamp", False, 16, (15, 120), HOME, NOT_NAMED, "light|desk light",
        "something to brighten a dark corner|more brightness to read by in bed",
        (
            Line("home", "brass|glass|paper", "standing|bedside|dimmable", "a warm glow|a pleated shade"),
            Line("work", "aluminium|steel", "clip-on|adjustable", "a long bending arm|three brightness steps"),
            Line("party", "plastic|paper", "colour-changing|lava-style", "a remote control|a slow fade"),
            Line("camping", "plastic|rubber", "rechargeable|hanging", "a hook and a red mode|forty hours of battery"),
        ),
    ),
    "Headphones": Kind(
        "headphones", True, 16, (20, 250), TECH, "unisex|unisex|unisex|kids", "earphones|earbuds",
        "something to listen to music with|a way to hear podcasts without bothering others",
        (
            Line("travel", "leather|plastic", "noise-cancelling|foldable", "thirty hours of battery|a hard case"),
            Line("running", "silicone|plastic", "wireless|sweatproof", "ear hooks|a charging case"),
            Line("work", "plastic|aluminium", "over-ear|wired", "a clear microphone|soft ear pads"),
            Line("school", "plastic|silicone", "volume-limited|padded", "a tangle-free cable|bendable arms"),
        ),
    ),
    "Yoga mats": Kind(
        "yoga mat", False, 14, (15, 90), HOME + "|purple|purple", NOT_NAMED, "exercise mat|fitness mat",
        "something padded for stretching on the floor|a grippy roll for my downward dog",
        (
            Line("yoga", "rubber|cork", "non-slip|extra-thick", "alignment marks|a carrying strap"),
            Line("gym", "foam|rubber", "wide|cushioned", "a wipe-clean top|reinforced edges"),
            Line("travel", "cotton|rubber", "foldable|thin", "a size that fits a suitcase|a washable cover"),
        ),
    ),
    "Water bottles": Kind(
        "water bottle", False, 16, (8, 45), TECH + "|purple|turquoise", "unisex|unisex|kids", "drinking bottle|flask",
        "something to stay hydrated with during training|a container for cold drinks that does not leak",
        (
            Line("gym", "plastic|steel", "one-litre|shaker", "a flip straw|marks for every hour"),
            Line("hiking", "aluminium|steel", "insulated|wide-mouth", "a carabiner loop|a screw cap"),
            Line("school", "plastic|steel", "leakproof|printed", "a push-button lid|a name tag"),
            Line("cycling", "plastic|aluminium", "squeezable|slim", "a bite valve|a shape that fits a cage"),
        ),
    ),
    "Blankets": Kind(
        "blanket", False, 15, (18, 120), HOME + "|navy", "unisex|unisex|kids", "throw|throw blanket",
        "something to snuggle under on the sofa|a soft cover against draughts in the living room",
        (
            Line("home", "cotton|wool|velvet", "knitted|fringed|waffle", "tasselled edges|a chunky weave"),
            Line("winter", "fleece|wool", "weighted|sherpa", "a furry underside|double stitching"),
            Line("camping", "fleece|nylon", "waterproof|roll-up", "a backing that stops damp|a carrying strap"),
        ),
    ),
}  # fmt: skip
