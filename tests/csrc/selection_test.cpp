// The CUDA kernels of selection, on the host, against a sort of everything.
//
// Sizes by code path: none, one token, 31 (part of a warp), 1024 (a block's one turn), 2700 (three blocks, the last one with
// a tail, and with one or two blocks several turns of a block).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "counter/mix.h"
#include "selection/selection_kernels.h"

namespace {

using namespace pyrl::selection;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr uint64_t kSeed = 0x8000000000000005ull;

// Of bool, for std::vector<bool> has no data().
struct Flags {
  std::vector<char> storage;
  const bool* data() const { return reinterpret_cast<const bool*>(storage.data()); }
  bool* data() { return reinterpret_cast<bool*>(storage.data()); }
};

struct Batch {
  std::vector<float> cov;
  Flags mask, eligible;
  std::vector<int64_t> uids;

  int64_t size() const { return static_cast<int64_t>(cov.size()); }
  Tokens tokens(bool with_eligible) const {
    return {cov.data(), mask.data(), with_eligible ? eligible.data() : nullptr, uids.data(), size()};
  }
};

// Rounded to tenths where `ties`, with numbers that are not, zeros of both signs, neighbours and subnormals.
Batch make_batch(int64_t size, bool ties, std::mt19937_64& random) {
  const std::vector<float> special{NAN, kInf, -kInf, 0.0f, -0.0f, 1.0f, 1.0f + 0x1p-23f, 0x1p-149f, -0x1p-149f, 3e38f};
  std::normal_distribution<float> normal(0.0f, 3.0f);
  Batch batch;
  for (int64_t t = 0; t < size; ++t) {
    const float x = ties ? std::round(normal(random) * 2) / 2 : normal(random);
    batch.cov.push_back(random() % 8 == 0 ? special[random() % special.size()] : x);
    batch.mask.storage.push_back(random() % 5 != 0);
    batch.eligible.storage.push_back(random() % 3 != 0);
    batch.uids.push_back((t * 1048573 + 17) * (t % 2 ? 1 : -1));
  }
  return batch;
}

struct Expected {
  std::vector<char> marks;
  int64_t valid = 0, candidates = 0, k = 0;
};

// By a sort of (largest covariance first, mix); `share` is k before it is bounded.
Expected expected(const Batch& batch, bool with_eligible, const Query& query, int64_t numerator, int64_t denominator) {
  Expected want;
  std::vector<std::tuple<float, uint64_t, int64_t>> keys;
  for (int64_t t = 0; t < batch.size(); ++t) {
    want.marks.push_back(0);
    want.valid += batch.mask.storage[t];
    if (!batch.mask.storage[t] || (with_eligible && !batch.eligible.storage[t])) continue;
    if (!std::isfinite(batch.cov[t]) || !(batch.cov[t] > query.lower) || !(batch.cov[t] < query.upper)) continue;
    const float order = query.by_covariance ? -batch.cov[t] : 0.0f;  // tuples compare -0 and 0 as equal
    keys.emplace_back(order, pyrl::mix(query.seed, static_cast<uint64_t>(batch.uids[t])), t);
  }
  std::sort(keys.begin(), keys.end());
  want.candidates = static_cast<int64_t>(keys.size());
  want.k = std::min(want.candidates, std::max<int64_t>(1, want.valid * numerator / denominator));
  for (int64_t i = 0; i < want.k; ++i) want.marks[std::get<2>(keys[i])] = 1;
  return want;
}

// The ranks hold the tokens between `cuts`; counts added to one array stand for the all-reduce.
struct Search {
  const Batch& batch;
  bool with_eligible;
  Query query;
  std::vector<int64_t> cuts;
  int max_blocks;

  Tokens part(size_t rank) const {
    const Tokens all = batch.tokens(with_eligible);
    const int64_t begin = cuts[rank];
    return {all.cov + begin, all.mask + begin, with_eligible ? all.eligible + begin : nullptr, all.uids + begin,
            cuts[rank + 1] - begin};
  }

  // One round more than is needed, if there is one: it must change nothing.
  State find(Ratio ratio) const {
    State state{};
    bool decided = false;
    for (int round = first_round(query.by_covariance); round < kDigits && !decided; ++round) {
      decided = state.decided;
      const State before = state;
      std::vector<int32_t> counts(kCounts);
      for (size_t rank = 0; rank + 1 < cuts.size(); ++rank) {
        launch_histogram(part(rank), query, round, &state, counts.data(), nullptr, max_blocks);
      }
      launch_advance(counts.data(), query.by_covariance, round, ratio, &state, nullptr);
      if (!decided) continue;
      check::that(counts == std::vector<int32_t>(kCounts), "nothing is counted once it is decided");
      check::that(std::memcmp(&state, &before, sizeof state) == 0, "nothing changes once it is decided");
    }
    return state;
  }

  std::vector<char> marks(const State& state) const {
    Flags marks;
    marks.storage.assign(batch.size(), 0x55);
    for (size_t rank = 0; rank + 1 < cuts.size(); ++rank) {
      launch_mark(part(rank), query, &state, marks.data() + cuts[rank], nullptr, max_blocks);
    }
    return marks.storage;
  }
};

void test_case(const std::string& name, const Search& search, Ratio ratio) {
  const Expected want =
      expected(search.batch, search.with_eligible, search.query, ratio.numerator, ratio.denominator);
  const State state = search.find(ratio);
  check::that(state.decided == 1 && state.errors == 0 && state.same_uid == 0, name + " is decided");
  check::that(state.valid == want.valid, name + " counts the valid tokens");
  check::that(search.marks(state) == want.marks, name + " selects " + std::to_string(want.k));
}

void test_sizes() {
  std::mt19937_64 random(1);
  const Query top{-kInf, kInf, kSeed, true}, band{0.5f, 4.0f, kSeed, false};
  for (const int64_t size : {0, 1, 31, 1024, 2700}) {
    const Batch batch = make_batch(size, size % 2 == 0, random);
    const std::string tokens = std::to_string(size) + " tokens";
    test_case("top of " + tokens, {batch, false, top, {0, size}, kMaxBlocks}, {3, 100});
  }
  const Batch batch = make_batch(2700, true, random);
  test_case("top, one block, three ranks", {batch, true, top, {0, 900, 900, 2700}, 1}, {1, 2});
  test_case("band, two blocks", {batch, true, band, {0, 2700}, 2}, {3, 100});
  test_case("band, one block, two ranks, one token", {batch, false, band, {0, 2100, 2700}, 1}, {1, 1000000});
  test_case("all of it", {batch, false, top, {0, 2700}, 1}, {1, 1});
}

// k keys of one value, and one that only the last digit of the mix sets apart.
void test_ties() {
  std::mt19937_64 random(2);
  Batch batch = make_batch(300, false, random);
  batch.cov.assign(300, -0.0f);
  for (int64_t t = 0; t < 300; t += 2) batch.cov[t] = 0.0f;
  const Query top{-kInf, kInf, kSeed, true};
  test_case("all tie", {batch, false, top, {0, 150, 300}, kMaxBlocks}, {1, 10});
}

void test_the_same_uid() {
  std::mt19937_64 random(3);
  Batch batch = make_batch(40, false, random);
  batch.cov.assign(40, 1.0f);
  batch.mask.storage.assign(40, 1);
  batch.uids.assign(40, 9);
  const Query top{-kInf, kInf, kSeed, true};
  const Search search{batch, false, top, {0, 40}, kMaxBlocks};
  const State some = search.find({1, 4});
  check::that(some.decided == 1 && some.errors == kSameUid && some.same_uid == 40, "the same uid is an error");
  const State all = search.find({1, 1});
  check::that(all.decided == 1 && all.errors == 0, "the same uid is none where all are selected");
}

// More tokens than memory has, by their counts alone: bins in all lanes, k in any of them, and n out of range.
void test_large_counts() {
  for (const int64_t k : {int64_t{1}, int64_t{7999999}, int64_t{8000000}, int64_t{8000001}, kMaxValid - 48000000, kMaxValid}) {
    std::vector<int32_t> counts(kCounts);
    std::vector<int64_t> bounds{0};
    for (int bin = 0; bin < kBins; ++bin) {
      counts[bin] = bin == kBins - 1 ? static_cast<int32_t>(kMaxValid - bounds.back()) : bin % 3 == 1 ? 0 : 8000000;
      bounds.push_back(bounds.back() + counts[bin]);
    }
    for (int part = 0; part < 2; ++part) counts[kBins + part] = part_of(kMaxValid, part);
    State state{};
    launch_advance(counts.data(), true, 0, {k, kMaxValid}, &state, nullptr);
    int bin = 0;
    while (bounds[bin + 1] < k) ++bin;
    const std::string name = "k = " + std::to_string(k);
    check::that(state.order >> 24 == static_cast<uint64_t>(bin), name + " digit");
    check::that(state.remaining == k - bounds[bin], name + " remaining");
    check::that(state.decided == (k == bounds[bin + 1]) && state.errors == 0, name + " decided");
  }
  std::vector<int32_t> counts(kCounts);
  for (int part = 0; part < 2; ++part) counts[kBins + part] = part_of(kMaxValid + 1, part);
  State state{};
  launch_advance(counts.data(), true, 0, {1, 2}, &state, nullptr);
  check::that(state.errors == kTooManyTokens && state.valid == kMaxValid + 1, "2^31 tokens");
}

// Of 2^31 tokens or more, bins may have wrapped below 0: in the first round, or in a later one, whose bins then do not
// reach k. The search must end all the same, in the last bin where none reaches k, and keep saying what is wrong.
void test_wrapped_counts() {
  constexpr int64_t kTokens = int64_t{3} << 30;
  for (const int full : {0, 7, 8, 131, kBins - 1}) {
    const std::string name = "wrapped bin " + std::to_string(full);
    std::vector<int32_t> counts(kCounts);
    counts[full] = static_cast<int32_t>(static_cast<uint32_t>(kTokens));
    for (int part = 0; part < 2; ++part) counts[kBins + part] = part_of(kTokens, part);
    check::that(counts[full] < 0, name + " is below 0");
    State first{};
    launch_advance(counts.data(), true, 0, {1, 2}, &first, nullptr);
    check::that(first.errors == kTooManyTokens && first.valid == kTokens, name + " in the first round");
    State state{};
    state.remaining = 5;
    state.valid = kTokens;
    state.errors = kTooManyTokens;
    for (int round = 1; round < kDigits; ++round) {
      check::that(state.decided == 0, name + " leaves it open");
      launch_advance(counts.data(), true, round, {1, 2}, &state, nullptr);
      const uint64_t digit = (round < kOrderDigits ? state.order : state.mix) >> shift_of(round) & 0xFF;
      check::that(digit == kBins - 1, name + " ends in the last bin");
    }
    check::that(state.decided == 1 && (state.errors & kTooManyTokens) != 0, name + " in later rounds");
  }
}

// Two blocks with several turns each, and several ranks: histogram, advance and mark of each round.
void test_races() {
  std::mt19937_64 random(1);
  const Batch batch = make_batch(2700, true, random);
  test_case("top, two blocks, two ranks", {batch, true, {-kInf, kInf, kSeed, true}, {0, 100, 2700}, 2}, {1, 2});
}

}  // namespace

int main() {
  if (check::kRaces) {
    test_races();
    return check::report();
  }
  test_sizes();
  test_ties();
  test_the_same_uid();
  test_large_counts();
  test_wrapped_counts();
  return check::report();
}
