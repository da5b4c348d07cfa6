// SPDX-License-Identifier: Apache-2.0
#include "driver.h"

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "runtime.h"

namespace driver {
namespace {

emul::Order order_of(const std::string& name) {
  if (name == "forward") return emul::Order::kForward;
  if (name == "reverse") return emul::Order::kReverse;
  if (name == "random") return emul::Order::kRandom;
  throw std::invalid_argument("order must be forward, reverse or random, got " + name);
}

/// The argument of that name, or no limit.
unsigned limit(const Arguments& arguments, const char* name) {
  return arguments.has(name) ? static_cast<unsigned>(arguments.integer(name)) : ~0u;
}

}  // namespace

Arguments::Arguments(int count, char** words) {
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const size_t equals = word.find('=');
    if (equals == std::string::npos) throw std::invalid_argument("expected NAME=VALUE, got " + word);
    values_[word.substr(0, equals)] = word.substr(equals + 1);
  }
}

const std::string& Arguments::text(const std::string& name) const {
  const auto found = values_.find(name);
  if (found == values_.end()) throw std::invalid_argument("argument " + name + " is missing");
  return found->second;
}

std::string Arguments::read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Arguments::write(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush()) {
    throw std::runtime_error("cannot write " + path);
  }
}

}  // namespace driver

int main(int count, char** words) try {
  const driver::Arguments arguments(count, words);
  const dim3 max_grid{driver::limit(arguments, "max_grid_x"), driver::limit(arguments, "max_grid_y"), ~0u};
  emul::configure(driver::order_of(arguments.text("order")),
                  static_cast<uint64_t>(arguments.integer("random_seed")), max_grid);
  driver::run(arguments);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
