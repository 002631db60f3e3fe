"""Phrases of the sample dataset: how items and training instructions speak, and which labels people like together.

Alternatives inside one string are separated by `|`.
"""

from __future__ import annotations

# How an item's text speaks of its occasion.
OCCASION_TEXT = {
    "casual": "everyday wear|easy weekends",
    "work": "long days at work|work and meetings at the office",
    "wedding": "weddings and formal receptions|a wedding guest",
    "party": "parties and late evenings|a party or a night out",
    "running": "running in the morning|running long distances",
    "gym": "hard sessions at the gym|gym training",
    "yoga": "yoga and stretching|a calm yoga class",
    "hiking": "hiking in the hills|hiking on long trails",
    "travel": "travel and commuting|long journeys and travel",
    "beach": "days at the beach|beach holidays",
    "summer": "hot summer days|summer holidays",
    "winter": "cold winter days|winter frost",
    "rain": "rainy days|heavy rain",
    "school": "school days|school and play",
    "home": "quiet evenings at home|lazy days at home",
    "cycling": "cycling to town|long cycling tours",
    "camping": "camping trips|nights at the camping site",
}

# How a training instruction speaks of an occasion and of the person it is for.
OCCASION_WISH = {
    "casual": "for everyday wear|for the weekend",
    "work": "for work|for the office",
    "wedding": "for a wedding",
    "party": "for a party",
    "running": "for running|for my runs",
    "gym": "for the gym|for workouts",
    "yoga": "for yoga",
    "hiking": "for hiking",
    "travel": "for travelling|for the road",
    "beach": "for the beach",
    "summer": "for summer|for hot days",
    "winter": "for winter|for cold days",
    "rain": "for rainy days",
    "school": "for school",
    "home": "for home",
    "cycling": "for cycling",
    "camping": "for camping",
}
AUDIENCE_WISH = {
    "men": "for men|for my husband|for a man",
    "women": "for women|for my wife|for a woman",
    "kids": "for kids|for a child|for my little one",
}
POSSESSIVE = {"men": "men's", "women": "women's", "kids": "kids'"}

# Which attributes a training instruction names: one per label and entry; "use" describes the need instead.
NAMED = (
    "colour", "colour|material", "colour|occasion", "audience", "colour|audience", "occasion", "material",
    "material|occasion", "colour|occasion|audience", "use", "use",
)  # fmt: skip

# The sentences around a wish; the hand-written splits must not use them (tests/unit/test_sample_data.py).
FRAMES = (
    "I want to buy {wish}",
    "I am looking for {wish}",
    "Show me {wish}",
    "Do you have {wish}?",
    "Find me {wish}",
    "I need {wish}",
    "Can you recommend {wish}?",
    "Please help me find {wish}",
    "I would like to order {wish}",
    "Where can I get {wish}?",
    "I'm shopping for {wish}",
    "Search for {wish}",
    "Is there {wish} in the shop?",
    "Suggest {wish}",
    "Looking to purchase {wish}",
    "My next buy is {wish}",
    "What about {wish}?",
    "I have been thinking of {wish}",
    "Let me see {wish}",
    "We are after {wish}",
    "Time to get {wish}",
    "Could I get {wish}, please?",
    "Get me {wish}",
)

# What people buy together: the labels that one person of the interaction log likes.
TASTES = (
    "Running shoes|Shorts|T-shirts",
    "Leggings|Yoga mats|Water bottles",
    "Shirts|Trousers|Blazers",
    "Shirts|Jeans",
    "Dresses|Handbags|Sandals",
    "Skirts|Sweaters|Boots",
    "Hoodies|Sneakers|Headphones",
    "Jackets|Boots|Backpacks",
    "Coats|Scarves|Hats",
    "Mugs|Lamps|Blankets",
    "Swimwear|Sunglasses|Hats",
    "Pyjamas|Socks|Blankets",
    "Watches|Blazers|Shirts",
    "Backpacks|Water bottles|Headphones",
    "T-shirts|Jeans|Sneakers",
)
